# MTAN on SegNet as CAGrad, Nash-MTL, FAMO and Aligned-MTL train it: Adam at 1e-4.
_base_ = ["./mtan_segnet_200e_nyuv2.py"]

optim_wrapper = dict(optimizer=dict(_delete_=True, type="Adam", lr=1e-4))
