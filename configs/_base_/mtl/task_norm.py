# Overlay for a method (--mtl task_norm+pcgrad): batch norms of each task's own, in models that
# take them: MultiTaskSegmentor, SemanticDetector and TaskNormMaskRCNN.
custom_imports = dict(imports=["mtl_plugins.mm.models"])
model = dict(task_norm=dict())
optim_wrapper = dict(type="MTLOptimWrapper")
