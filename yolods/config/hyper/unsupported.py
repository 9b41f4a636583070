"""Settings of ultralytics and yolov5 that are not supported, each with the reason.

ultralytics' settings come with its default: repeating the default changes nothing and is accepted.
So a copy of its default.yaml, and the args.yaml that it writes into a run, can serve as a hyp file.
A setting with `ALWAYS` is refused at any value, except for the keys that `NOT_USED` accepts in a
file.
"""

from __future__ import annotations

from typing import Any

ALWAYS = object()
"""Marks a key that is not supported at any value, not even ultralytics' default."""

_SEGMENT = "it is for segmentation; yolods trains detectors only"
_CLASSIFY = "it is for classification; yolods trains detectors only"
_POSE = "it is for pose estimation; yolods trains detectors only"
_OBB = "it is for oriented boxes; yolods trains detectors with upright boxes only"
_DEPTH = "it is for depth estimation; yolods trains detectors only"
_PREDICT = "it is for prediction; use YOLO('best.pt').predict(...) on the finished model"
_EXPORT = "it is for export; use YOLO('best.pt').export(...) on the finished model"

REFUSED: dict[str, tuple[Any, str]] = {
    "task": ("detect", "yolods trains detectors only"),
    "mode": ("train", "the subcommand is the mode: yolods train, val, export"),
    "time": (
        None,
        "training ends after --epochs or by patience; a limit in hours would end runs at different "
        "steps",
    ),
    "save": (True, "best.pt, last.pt and the checkpoints are always written"),
    "verbose": (True, "the screen is kept short and train.log has everything"),
    "rect": (
        False,
        "rectangular training batches differ in shape from rank to rank; evaluation is rectangular "
        "anyway",
    ),
    "amp": (
        ALWAYS,
        "set the precision in the DeepSpeed JSON: bf16, fp16 or torch_autocast (ds_configs/ has "
        "each)",
    ),
    "profile": (False, "it times ONNX and TensorRT exports; the DeepSpeed JSON has flops_profiler"),
    "compile": (False, "torch.compile has not been tested with ZeRO's hooks"),
    "overlap_mask": (True, _SEGMENT),
    "mask_ratio": (4, _SEGMENT),
    "dropout": (0.0, _CLASSIFY),
    "split": ("val", "training evaluates on val; `yolods val` has --split"),
    "save_json": (False, "use YOLO('best.pt').val(save_json=True) on the finished model"),
    "quantize": (
        None,
        "set the precision in the DeepSpeed JSON; there is no quantisation-aware training",
    ),
    "dnn": (False, _PREDICT),
    "nms": (None, _EXPORT),
    "source": (None, _PREDICT),
    "vid_stride": (1, _PREDICT),
    "stream_buffer": (False, _PREDICT),
    "visualize": (False, _PREDICT),
    "augment": (
        False,
        "test-time augmentation is for prediction; hsv_h, mosaic and others control training's",
    ),
    "retina_masks": (False, _SEGMENT),
    "embed": (None, _PREDICT),
    "show": (False, _PREDICT),
    "save_frames": (False, _PREDICT),
    "save_txt": (False, _PREDICT),
    "save_conf": (False, _PREDICT),
    "save_crop": (False, _PREDICT),
    "show_labels": (True, _PREDICT),
    "show_conf": (True, _PREDICT),
    "show_boxes": (True, _PREDICT),
    "line_width": (None, _PREDICT),
    "format": ("torchscript", _EXPORT),
    "optimize": (False, _EXPORT),
    "dynamic": (False, _EXPORT),
    "simplify": (True, _EXPORT),
    "opset": (None, _EXPORT),
    "workspace": (None, _EXPORT),
    "distill_model": (None, "yolods has no distillation"),
    "dis": (6.0, "it weights distillation, which yolods does not have"),
    "pose": (12.0, _POSE),
    "kobj": (1.0, _POSE),
    "rle": (1.0, _POSE),
    "angle": (1.0, _OBB),
    "dlog": (1.0, _DEPTH),
    "dgrad": (0.5, _DEPTH),
    "dlam": (1.0, _DEPTH),
    "auto_augment": ("randaugment", _CLASSIFY),
    "erasing": (0.4, _CLASSIFY),
    "cfg": (None, "use --hyp for the file"),
    "tracker": (
        "tracktrack.yaml",
        "it is for tracking; use YOLO('best.pt').track(...) on the finished model",
    ),
}
"""ultralytics' other settings: name -> (its default there, the reason)."""

EARLIER: dict[str, tuple[Any, ...]] = {
    "boxes": (True,),
    "crop_fraction": (1.0,),
    "end2end": (None,),
    "half": (False,),
    "hide_conf": (False,),
    "hide_labels": (False,),
    "int8": (False,),
    "keras": (False,),
    "label_smoothing": (0.0,),
    "line_thickness": (None, 3),
    "nms": (False,),
    "save_hybrid": (False,),
    "simplify": (False,),
    "tracker": ("botsort.yaml",),
    "v5loader": (False,),
    "workspace": (4,),
}
"""Further defaults that are accepted, from the args.yaml of earlier versions of ultralytics; it has
dropped some of the names since."""

NOT_USED = {
    "amp": "set the precision in the DeepSpeed JSON",
    "project": "use --project",
    "name": "use --name",
    "exist_ok": "use --exist-ok",
    "save_dir": "use --project and --name",
    "resume": "use --resume",
    "device": (
        "choose devices with the launcher's --num_gpus, --include or --hostfile, or "
        "CUDA_VISIBLE_DEVICES"
    ),
}
"""Keys that a hyp file may contain without effect, as an args.yaml does -> what to use instead. The
run reports them."""

_NO_ANCHORS = "YOLOv5 here is YOLOv5u, which has no anchors"
_NO_OBJECTNESS = "YOLOv5 here is YOLOv5u, which has no objectness"

YOLOV5: dict[str, str] = {
    "anchors": _NO_ANCHORS,
    "anchor_t": _NO_ANCHORS,
    "iou_t": _NO_ANCHORS,
    "obj": _NO_OBJECTNESS,
    "obj_pw": _NO_OBJECTNESS,
    "fl_gamma": "YOLOv5u's loss is not focal: it weights classes by task alignment",
    "label_smoothing": "YOLOv5u's class targets are soft already, from task alignment",
    "image_weights": (
        "samples are a pure function of seed, epoch and index; use cls_pw to weight rare classes "
        "higher"
    ),
    "evolve": "yolods has no hyper-parameter search",
    "quad": "every batch has the same shape on every rank",
    "noautoanchor": _NO_ANCHORS,
    "adam": "write optimizer=Adam",
    "sync-bn": "write sync_bn",
    "hyp": "use --hyp for the file",
}
"""Names from the original yolov5's train.py and hyp files -> the reason or the remedy."""

YOLOV5_GAINS = ("box", "cls", "cls_pw")
"""Names with different meanings in yolov5 and YOLOv5u, so that a yolov5 file must not set them
silently."""

FLAGS = {
    "data": "--data",
    "model": "--model",
    "weights": "--weights",
    "project": "--project",
    "name": "--name",
    "exist_ok": "--exist-ok",
    "resume": "--resume",
    "epochs": "--epochs",
    "imgsz": "--imgsz",
    "batch": "--batch-size",
    "batch_size": "--batch-size",
    "workers": "--workers",
    "trace": "--trace",
    "deepspeed_config": "--deepspeed_config",
    "device": "the launcher's --num_gpus, --include or --hostfile, or CUDA_VISIBLE_DEVICES",
}
"""Settings that are flags and not hyper-parameters -> the flag."""

FLAGS_IN_FILE = {
    "data": "data",
    "model": "model",
    "epochs": "epochs",
    "imgsz": "imgsz",
    "batch": "batch_size",
    "workers": "workers",
    "trace": "trace",
}
"""Those that a hyp file may set: key in the file -> name of the flag. The flag wins."""
