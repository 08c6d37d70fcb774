"""Keys and tokens: those of the installation's own workloads, and the verification of everybody's."""
