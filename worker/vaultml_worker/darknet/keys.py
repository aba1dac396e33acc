"""The keys that a network description may have, by section: read, without effect on detection, or refused.

Darknet itself ignores a key that it doesn't know. A fork of Darknet may know it, and compute another network: so a key
that is in none of these lists is refused by name.
"""

from collections.abc import Mapping


def _keys(*words: str) -> frozenset[str]:
    return frozenset(key for line in words for key in line.split())


READ: Mapping[str, frozenset[str]] = {
    "net": _keys("width height channels"),
    "convolutional": _keys("filters size stride stride_x stride_y pad padding groups batch_normalize activation"),
    "maxpool": _keys("size stride stride_x stride_y padding"),
    "shortcut": _keys("from activation"),
    "route": _keys("layers groups group_id"),
    "upsample": _keys("stride"),
    "yolo": _keys("mask anchors classes num scale_x_y new_coords"),
}
"""Keys that are read."""

_TRAINING = _keys("stopbackward onlyforward dont_update burnin_update train_only_bn clip learning_rate truth smooth")

WITHOUT_EFFECT: Mapping[str, frozenset[str]] = {
    "net": _keys(
        # Training: steps, rates, losses, augmentation.
        "batch subdivisions max_batches batches_per_cycle batches_cycle_mult burn_in policy step steps scale scales",
        "seq_scales gamma power learning_rate learning_rate_min momentum decay adam B1 B2 eps ema_alpha loss_scale",
        "angle aspect saturation exposure hue flip blur gaussian_noise mixup cutmix mosaic mosaic_bound max_crop",
        "min_crop max_ratio min_ratio center clip random notruth label_smooth_eps resize_step attention contrastive",
        "contrastive_jit_flip contrastive_color unsupervised adversarial_lr max_chart_loss max_delta equidistant_point",
        "badlabels_rejection_percentage num_sigmas_reject_badlabels weights_reject_freq dynamic_minibatch",
        "augment_speed sequential_subdivisions try_fix_nan",
        # How Darknet's own program computes, reads pictures and draws.
        "optimized_memory workspace_size_limit_MB use_cuda_graph cuda_graph show_receptive_field letter_box track",
        "time_steps inputs",
    ),
    "convolutional": _TRAINING | _keys("angle grad_centr"),
    "maxpool": _TRAINING | _keys("out_channels"),
    "shortcut": _TRAINING | _keys("weights_normalization weights_normalizion"),
    "route": _TRAINING,
    "upsample": _TRAINING,
    "yolo": _TRAINING
    | _keys(
        # Losses.
        "jitter resize random ignore_thresh truth_thresh iou_thresh iou_thresh_kind iou_loss iou_normalizer",
        "obj_normalizer cls_normalizer delta_normalizer max_delta focal_loss label_smooth_eps max absolute",
        "objectness_smooth counters_per_class show_details map",
        # Suppression and tracking in Darknet's own program: the worker has its own.
        "nms_kind beta_nms embedding_layer track_history_size sim_thresh dets_for_track dets_for_show",
        "track_ciou_norm",
    ),
}
"""Keys that don't change what a trained network detects."""

_ALWAYS = {"dontload": "0", "dontloadscales": "0"}
_VARIANTS = _keys(
    "antialiasing binary xnor bin_output flipped dot cbn assisted_excitation sway rotate stretch stretch_sway deform",
    "coordconv reverse",
)

ONLY: Mapping[str, Mapping[str, str]] = {
    "net": {},
    "convolutional": {**_ALWAYS, "dilation": "1", **dict.fromkeys(_VARIANTS, "0")},
    "maxpool": {**_ALWAYS, "maxpool_depth": "0", "antialiasing": "0"},
    "shortcut": {**_ALWAYS, "alpha": "1", "beta": "1", "weights_type": "none"},
    "route": _ALWAYS,
    "upsample": {**_ALWAYS, "scale": "1"},
    "yolo": _ALWAYS,
}
"""Keys that change the network and are not supported, with the one value that leaves it as it is."""
