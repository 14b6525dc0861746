"""CT volumes outside the models: intensities, NIfTI files, resampling, preview pictures.

Arrays are `[depth, height, width]` with physical axes: depth grows from feet to head (S+), height
from front to back (P+), width from the patient's right to left (L+).
"""
