"""Who may do what, and what is served: compiled from the tables into one immutable snapshot."""
