"""Who somebody is: principals, keys and tokens of the installation's own workloads, verification of everybody's."""
