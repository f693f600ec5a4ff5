"""MRI on flowplat: blind harmonization, NIfTI in and NIfTI out."""
