"""Who calls and what they may: principals, roles and grants, compiled from the tables into an immutable snapshot."""
