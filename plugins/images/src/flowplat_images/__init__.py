"""Images: data sets, networks, metrics and presets for flows on small pictures."""
