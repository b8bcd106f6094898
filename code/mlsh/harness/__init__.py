"""What the studies share: jobs, their results, tables and figures."""
