# Any method of TorchJD (pip install 'mtl-plugins[torchjd]'), by name, with its arguments beside.
custom_imports = dict(imports=["mtl_plugins.mm"])
optim_wrapper = dict(
    type="MTLOptimWrapper", aggregator=dict(type="TorchJD", name="DualProjWeighting")
)
custom_hooks = [dict(type="TaskInterferenceHook", interval=10)]
