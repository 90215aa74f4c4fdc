# The same with batch norms of each task's own, as paper D trains it with connection strength.
_base_ = ["./segnet-small_cityscapes-7.py"]

model = dict(task_norm=dict())
