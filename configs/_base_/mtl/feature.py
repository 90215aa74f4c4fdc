# Overlay for a method (--mtl pcgrad+feature): gradients of the features decide, of the neck or as
# the model says.
custom_imports = dict(imports=["mtl_plugins.mm"])
optim_wrapper = dict(type="MTLOptimWrapper", level="feature")
