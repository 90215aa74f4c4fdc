from types import ModuleType

import pytest
import torch


def test_missing_operators_raise_when_called(mmcv_ops: ModuleType) -> None:
    image, rois = torch.rand(1, 2, 8, 8), torch.tensor([[0.0, 1, 1, 6, 6]])
    with pytest.raises(NotImplementedError, match="'roi_pool_forward'.*onedl-mmcv"):
        mmcv_ops.roi_pool(image, rois, 2)
    with pytest.raises(NotImplementedError, match="'deform_roi_pool_forward'"):
        mmcv_ops.deform_roi_pool(image, rois, None, 2)
    with pytest.raises(NotImplementedError, match="pool_mode='max'"):
        mmcv_ops.roi_align(image, rois, 2, 1.0, 0, "max", True)


def test_module_answers_operator_names_only(mmcv_ops: ModuleType) -> None:
    import mmcv._ext

    assert hasattr(mmcv._ext, "some_future_operator")
    assert not hasattr(mmcv._ext, "__wrapped__")


def test_environment_reports(mmcv_ops: ModuleType) -> None:
    from mmcv.utils.env import collect_env
    from mmengine.utils.dl_utils import mmcv_full_available

    report = collect_env()
    assert "torchvision" in report["MMCV Compiler"]
    assert report["MMCV CUDA Compiler"] == "not available"
    assert mmcv_full_available()


def test_mmengine_groups_parameters(mmcv_ops: ModuleType) -> None:
    # Its optimiser constructor tells deformable convolutions apart where mmcv is "full".
    from mmengine.optim import build_optim_wrapper

    optimizer = {"type": "SGD", "lr": 0.1, "weight_decay": 0.1}
    paramwise = {"norm_decay_mult": 0.0}
    wrapper = build_optim_wrapper(
        torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.BatchNorm2d(1)),
        {"optimizer": optimizer, "paramwise_cfg": paramwise},
    )
    assert [group["weight_decay"] for group in wrapper.param_groups[:4]] == [0.1, 0.1, 0, 0]
