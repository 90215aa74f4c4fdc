# The survey's schedule for single tasks of PASCAL-Context.
_base_ = ["./dense_100e.py"]

train_cfg = dict(max_epochs=60, dynamic_intervals=[(51, 1)])
param_scheduler = [dict(type="PolyLR", by_epoch=True, power=0.9, begin=0, end=61, eta_min=0.0)]
