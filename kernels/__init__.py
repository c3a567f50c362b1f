"""roofplan's own Triton kernels: what `calibrate` times on a device, with references, exact costs and known grids.

Importing this package or its registry loads neither torch nor triton; the modules of the kernels do.
"""
