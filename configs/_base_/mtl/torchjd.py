# Any method of TorchJD (pip install 'mtl-plugins[torchjd]'): name it, and its arguments beside it.
custom_imports = dict(imports=["mtl_plugins.mm"])
optim_wrapper = dict(
    type="MTLOptimWrapper", aggregator=dict(type="TorchJD", name="DualProjWeighting")
)
custom_hooks = [dict(type="TaskInterferenceHook", interval=10)]
