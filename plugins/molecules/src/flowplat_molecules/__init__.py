"""Molecules: property-guided three-dimensional molecules, PropMolFlow."""
