# Overlay for a method (--mtl pcgrad+layers): gradients of the neck's parameters decide.
custom_imports = dict(imports=["mtl_plugins.mm"])
optim_wrapper = dict(type="MTLOptimWrapper", level="layers", layers="neck")
