"""NVFP4 and MXFP4: formats, layouts, quantisation, linear layers."""
