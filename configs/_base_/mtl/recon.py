# Overlay, Recon's first run: counts the conflicts in each layer, for tools/recon.py.
custom_imports = dict(imports=["mtl_plugins.mm"])
optim_wrapper = dict(type="MTLOptimWrapper")
custom_hooks = [dict(type="LayerConflictHook", threshold=0.0)]
