# RotoGrad rotates what MultiTaskSegmentor's heads get; other models are an error.
custom_imports = dict(imports=["mtl_plugins.mm"])
model = dict(rotations=dict())
optim_wrapper = dict(
    type="MTLOptimWrapper",
    level="feature",
    aggregator=dict(type="RotoGrad", lr=1e-5, decay=0.99999, burn_in=20),
)
custom_hooks = [dict(type="TaskInterferenceHook", interval=10)]
