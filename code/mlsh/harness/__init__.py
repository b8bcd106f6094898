"""What the studies share: jobs, tables and figures."""
