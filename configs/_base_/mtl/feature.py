# Overlay for a method (--mtl pcgrad+feature): gradients of the neck's features decide.
custom_imports = dict(imports=["mtl_plugins.mm"])
optim_wrapper = dict(type="MTLOptimWrapper", level="feature", representation="neck")
