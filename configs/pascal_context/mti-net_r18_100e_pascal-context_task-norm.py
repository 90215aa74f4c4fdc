# The same with batch norms of each task's own, as paper D trains it with connection strength.
_base_ = ["./mti-net_r18_100e_pascal-context.py"]

model = dict(task_norm=dict())
