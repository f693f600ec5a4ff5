"""Time series: data, network, guidance, metrics and tasks for flows of windows."""
