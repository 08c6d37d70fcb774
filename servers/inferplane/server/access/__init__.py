"""What callers may: roles and grants, compiled from the tables into an immutable snapshot, and each decision."""
