"""Between the scene and the worker: nodes to files, files to nodes, and how they are shown.

The only code that knows of LPS and RAS, IJK and KJI, and polydata.
"""
