"""DiffusionFM's library: diffusion MRI of the brain, from files to maps and tracts, without a viewer.

Importing it loads neither torch nor nibabel nor dipy: Slicer's own process reads settings, events and model
declarations from here, and the worker process computes.
"""

__version__ = "0.1.0"
