"""Many requests, one run: queue, policy, instances and counts. May import the modules on the ground floor."""
