"""Every config key of this project, once, with meaning, unit and source.

`add_solo_config(cfg)` extends Detectron2's defaults; each key below is read by exactly one
constructor (`from_config`) or one function of the trainer.
"""

from detectron2.config import CfgNode

from solo_d2.utils.images import MAX_PIXELS


def add_solo_config(cfg: CfgNode) -> None:
    """Add the keys of SOLO to Detectron2's config, in place.

    The models are registered by importing `solo_d2.modeling`; `solo_d2.add_solo_config` does both.

    Args:
        cfg: a config made by `detectron2.config.get_cfg()`.
    """
    # The classes, as the categories of a COCO json: [{"id": 1, "isthing": 1, "name": "cat"}, ...],
    # things in the order of their indices, then stuff. Training fills it from the first data set of
    # DATASETS.TRAIN and saves it in config.yaml and in each checkpoint, whose classes come first
    # where a model is run. []: unknown, so taken from the data sets.
    cfg.MODEL.CLASSES = []
    cfg.MODEL.SOLO = CfgNode()
    _add_grid_keys(cfg.MODEL.SOLO)
    _add_head_keys(cfg.MODEL.SOLO)
    _add_loss_keys(cfg.MODEL.SOLO)
    _add_inference_keys(cfg.MODEL.SOLO)
    _add_panoptic_keys(cfg)
    _add_weights_keys(cfg.MODEL)
    _add_backbone_keys(cfg.MODEL)
    _add_data_keys(cfg)
    _add_solver_keys(cfg)
    _add_speed_keys(cfg.TEST)


def _add_grid_keys(solo: CfgNode) -> None:
    # Number of thing classes K. 0: take it from the metadata of DATASETS.TRAIN[0].
    solo.NUM_CLASSES = 0
    # Backbone features, finest first, one for each grid.
    solo.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    # Stride in input pixels at which the head sees each feature; a feature of another stride is
    # resized bilinearly (published: P2 halved, P6 resized to the size of P5).
    solo.STRIDES = [8, 8, 16, 32, 32]
    # Grid side S of each level: S x S cells over the padded input.
    solo.NUM_GRIDS = [40, 36, 24, 16, 12]
    # Instance scale sqrt(w * h) in input pixels that each level trains on, both ends inclusive.
    # The ranges overlap, so one instance may train two levels.
    solo.SCALE_RANGES = [[1, 96], [48, 192], [96, 384], [192, 768], [384, 2048]]
    # Size of the centre region relative to the box (SOLO paper: epsilon = 0.2).
    solo.CENTER_SCALE = 0.2
    # What happens when several instances claim one cell:
    # "all": each keeps its mask sample, the class is the last one's (SOLOv2 as published),
    # "last": the cell belongs to the last one (SOLO and Decoupled SOLO as published), or
    # "nearest": the cell belongs to the instance whose mass centre is nearest to the cell's centre;
    # of equally near ones to the smaller, then the earlier.
    solo.CELL_CONFLICT = "all"
    # What the mask branch predicts: "mask", or "contour" (SOLO paper, section 6), the pixels of the
    # downsampled mask that touch its outside. Cells, scales and centres come from the masks in both
    # cases.
    solo.MASK_TARGET = "mask"


def _add_head_keys(solo: CfgNode) -> None:
    solo.HEAD = CfgNode()
    # Name in SOLO_HEAD_REGISTRY.
    solo.HEAD.NAME = "SOLOv2Head"
    # 3x3 convolutions of each tower, and their width.
    solo.HEAD.NUM_CONVS = 4
    solo.HEAD.CONV_DIM = 512
    # Normalisation of towers and mask feature; "GN" is GroupNorm with 32 groups.
    solo.HEAD.NORM = "GN"
    # Class probability at the start of training (focal loss paper, section 3.3).
    solo.HEAD.PRIOR_PROB = 0.01
    # How a level's feature is brought to the S x S grid (SOLO paper, ablations): "interpolate",
    # "max_pool" (adaptive) or "region_grid" (mean of dense bilinear samples in each cell).
    solo.HEAD.ALIGN = "interpolate"
    # Kind of deformable convolution in the towers, "" for none, "v1" or "v2" (modulated), and how
    # many of each tower's last convolutions are of that kind.
    solo.HEAD.DEFORM = ""
    solo.HEAD.NUM_DEFORM_CONVS = 1
    # SOLO and Decoupled SOLO: convolutions of the mask towers that see coordinates, from the first
    # one on (SOLO paper, table 3).
    solo.HEAD.NUM_COORD_CONVS = 1
    # SOLOv2: side of the dynamic kernels, 1 or 3 (paper, table 3a). The kernel length is
    # D = side^2 * MASK_FEATURE.OUT_CHANNELS.
    solo.HEAD.KERNEL_SIZE = 1
    # SOLOv2: whether the kernel branch sees coordinates (paper, table 3b).
    solo.HEAD.KERNEL_COORDS = True

    # SOLOv2: the mask feature (paper, section 2.1.2).
    solo.MASK_FEATURE = CfgNode()
    # "unified", or "separate": one for each level, by SOLO's mask tower (paper, table 3d).
    solo.MASK_FEATURE.TYPE = "unified"
    # Unified: backbone features that are merged at the stride of the first one, finest first.
    solo.MASK_FEATURE.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    # Separate: convolutions of the tower.
    solo.MASK_FEATURE.NUM_CONVS = 7
    # Width before and after the last 1x1 convolution; the latter is E.
    solo.MASK_FEATURE.CONV_DIM = 128
    solo.MASK_FEATURE.OUT_CHANNELS = 256
    # Whether the coarsest feature (separate: each) gets coordinates (paper, table 3b).
    solo.MASK_FEATURE.COORDS = True
    # Kind of deformable convolution everywhere in the mask feature, "", "v1" or "v2".
    solo.MASK_FEATURE.DEFORM = ""


def _add_loss_keys(solo: CfgNode) -> None:
    solo.LOSS = CfgNode()
    # Weights of the category loss and of the mask loss (lambda of SOLO's equation 1).
    solo.LOSS.CLS_WEIGHT = 1.0
    solo.LOSS.MASK_WEIGHT = 3.0
    # Name in MASK_LOSSES of solo_d2/losses.py: "dice", "bce" or "focal" (SOLO paper, table 4, with
    # weights 3, 10 and 20).
    solo.LOSS.MASK_TYPE = "dice"
    # "bce": weight of the pixels inside the mask.
    solo.LOSS.MASK_POS_WEIGHT = 2.0
    # Of the category loss, and of the mask loss "focal".
    solo.LOSS.FOCAL_ALPHA = 0.25
    solo.LOSS.FOCAL_GAMMA = 2.0
    # Approximate limit of a loss's temporary memory in MiB; 0: 64, on CUDA 1,024. Larger masks are
    # computed in strips of rows, and again for the gradient; the losses do not depend on it.
    solo.LOSS.MEMORY_MIB = 0


def _add_inference_keys(solo: CfgNode) -> None:
    # A cell's class is a candidate above this probability.
    solo.SCORE_THRESH_TEST = 0.1
    # A pixel belongs to a mask, or to a contour, above this probability.
    solo.MASK_THRESH_TEST = 0.5
    # Best candidates that enter mask NMS.
    solo.PRE_NMS_TOPK = 500
    # On CUDA: candidates of an image that are decoded with fixed shapes, without waiting for the
    # device, at least PRE_NMS_TOPK. An image where more could matter is decoded once more, as it is
    # on the CPU. 0: all are. Results do not depend on it.
    solo.LANES = 1000
    # Instances need at least this score after mask NMS. At most TEST.DETECTIONS_PER_IMAGE are kept.
    solo.KEEP_THRESH_TEST = 0.05
    # How masks are made binary and resized: "auto" chooses by device; "torch" (the reference),
    # "tiled" (made for the CPU) and "triton" (CUDA) force one. They differ by rounding alone.
    solo.MASK_BACKEND = "auto"
    solo.NMS = CfgNode()
    # Name in the table NMS of solo_d2/inference.py: "matrix", "hard", "soft" or "fast". Each reads
    # the keys here that are named as its parameters.
    solo.NMS.TYPE = "matrix"
    # "matrix" and "soft": "gaussian" (exp(-sigma * iou^2)) or "linear" (1 - iou).
    solo.NMS.KERNEL = "gaussian"
    # "matrix" and "soft", gaussian: the sharpness; the papers' sigma is its inverse.
    solo.NMS.SIGMA = 2.0
    # "hard" and "fast": masks that overlap a better one of their class by more than this IoU are
    # removed. "soft", linear: those are the ones whose score is lowered (Soft-NMS paper: 0.3).
    solo.NMS.THRESH = 0.5
    # Whether masks of different classes compete.
    solo.NMS.CLASS_AGNOSTIC = False
    # "auto" chooses by device; "torch" (the reference), "tiled" (made for the CPU) and "triton"
    # (CUDA) force one. They count the same pixels; scores agree to float32 rounding.
    solo.NMS.BACKEND = "auto"


def _add_backbone_keys(model: CfgNode) -> None:
    # BACKBONE.NAME "build_solo_resnet_fpn_backbone" reads Detectron2's own keys RESNETS and FPN.
    # RESNETS.NORM may also be "EvalBN": BatchNorm that keeps its running statistics while its scale
    # and shift are trained, as in the authors' recipe (mmdetection's norm_eval).

    # "build_solo_swin_fpn_backbone"; FPN.IN_FEATURES are its stages, "p0" to "p3". These are the
    # numbers of Swin-T (arXiv:2103.14030, section 3.3 and, for detection, appendix A2.2).
    model.SWIN = CfgNode()
    # Channels of the first stage, doubled from stage to stage.
    model.SWIN.EMBED_DIM = 96
    # Blocks and attention heads of each stage.
    model.SWIN.DEPTHS = [2, 2, 6, 2]
    model.SWIN.NUM_HEADS = [3, 6, 12, 24]
    # Side of the attention windows, in the cells of the stage.
    model.SWIN.WINDOW_SIZE = 7
    # Probability with which training leaves out the last block; it rises from 0 linearly.
    model.SWIN.DROP_PATH_RATE = 0.2

    # "build_solo_vit_backbone"; has FPN.OUT_CHANNELS and FPN.NORM, which must not be "". These are
    # the numbers of ViT-B (ViTDet, arXiv:2203.16527, section 3 and appendix).
    model.VIT = CfgNode()
    # Channels, blocks and attention heads. Patches are of 16 x 16 pixels.
    model.VIT.EMBED_DIM = 768
    model.VIT.DEPTH = 12
    model.VIT.NUM_HEADS = 12
    # Blocks, from 0, that look at the whole image; the others look at windows of this many patches
    # a side.
    model.VIT.GLOBAL_BLOCKS = [2, 5, 8, 11]
    model.VIT.WINDOW_SIZE = 14
    # Side in pixels for which the global blocks store relative positions; they are interpolated for
    # images of other sizes, which need not be square.
    model.VIT.IMAGE_SIZE = 1024
    # As SWIN.DROP_PATH_RATE.
    model.VIT.DROP_PATH_RATE = 0.1
    # Factor on the learning rate from each block to the one before it, for SOLVER.OPTIMIZER
    # "AdamW"; 1.0: all learn alike.
    model.VIT.LR_DECAY = 0.7

    # "build_solo_regnet_fpn_backbone"; FPN.IN_FEATURES are its stages, "s1" to "s4". These are the
    # numbers of RegNetX-4.0GF (arXiv:2003.13678, section 3.3 and pycls' dds_baselines).
    model.REGNET = CfgNode()
    # Channels of the stem.
    model.REGNET.STEM_WIDTH = 32
    # Blocks of all stages; the width of block j is W_0 + W_A * j, quantised to W_0 * W_M^k.
    model.REGNET.DEPTH = 23
    model.REGNET.W_A = 38.65
    model.REGNET.W_0 = 96
    model.REGNET.W_M = 2.43
    # Channels of a group of the 3x3 convolutions.
    model.REGNET.GROUP_WIDTH = 40
    # Width of squeeze-and-excitation relative to the block's input; 0: none (RegNetX; Y: 0.25).
    model.REGNET.SE_RATIO = 0.0
    # "FrozenBN" for pretrained weights, or another norm of Detectron2's.
    model.REGNET.NORM = "FrozenBN"

    # "build_solo_timm_fpn_backbone": any model of timm that makes features of several strides. They
    # are named as those of Detectron2's ResNet: FPN.IN_FEATURES "res2" has stride 4, "res5" 32.
    model.TIMM = CfgNode()
    # Name in timm, such as "convnext_tiny"; after a dot which of its weights, such as "fb_in1k".
    # Random weights are made, and none loaded: for those of timm's hub there is
    # MODEL.WEIGHTS "timm://NAME".
    model.TIMM.NAME = ""
    # Whether images are normalised as that model of timm was trained, instead of by PIXEL_MEAN and
    # PIXEL_STD. Either way it gets RGB, whatever INPUT.FORMAT is.
    model.TIMM.OWN_NORMALIZATION = True
    # What its BatchNorms do, if it has any: "FrozenBN" and "EvalBN" keep the running statistics
    # (see above), "BN" and "SyncBN" train with those of the batch. Other norms stay as they are.
    model.TIMM.NORM = "FrozenBN"
    # As SWIN.DROP_PATH_RATE.
    model.TIMM.DROP_PATH_RATE = 0.0
    # As VIT.LR_DECAY, for models whose blocks timm knows.
    model.TIMM.LR_DECAY = 1.0


def _add_weights_keys(model: CfgNode) -> None:
    # MODEL.WEIGHTS takes files of this project, Detectron2, AdelaiDet, the SOLO authors' code,
    # mmdetection, torchvision and timm. The weights of a model must fill it exactly, those of a
    # backbone the backbone. Parameters by these patterns ("*": any characters) may be missing, left
    # over or of another shape; those of the model then keep their start. To train other classes
    # from a trained model: ["head.class_logits.*"].
    model.WEIGHTS_ALLOW = []


def _add_panoptic_keys(cfg: CfgNode) -> None:
    # MODEL.META_ARCHITECTURE "PanopticSOLO" reads Detectron2's keys too: of MODEL.SEM_SEG_HEAD
    # IN_FEATURES (merged at the stride of the first one), CONVS_DIM, NORM, NUM_CLASSES (stuff
    # classes and one for all things), IGNORE_VALUE and LOSS_WEIGHT; of MODEL.PANOPTIC_FPN.COMBINE
    # OVERLAP_THRESH, STUFF_AREA_LIMIT and INSTANCES_CONFIDENCE_THRESH. The others of these two
    # (NAME, COMMON_STRIDE, INSTANCE_LOSS_WEIGHT, COMBINE.ENABLED) belong to other models.
    semantic = cfg.MODEL.SEM_SEG_HEAD
    # 0: take it from the metadata of the data set.
    semantic.NUM_CLASSES = 0
    # Whether the semantic logits are made of SOLOv2's unified mask feature, rather than by a branch
    # of their own (SOLOv2 paper, section 3.2); IN_FEATURES, CONVS_DIM, NORM and COORDS then have
    # no effect.
    semantic.SHARE_MASK_FEATURE = False
    # Whether the coarsest feature gets coordinates, as in the mask feature.
    semantic.COORDS = True


def _add_data_keys(cfg: CfgNode) -> None:
    # Data sets in COCO format to register, a list of [name, json file, image folder]; use the names
    # in DATASETS.TRAIN and DATASETS.TEST.
    cfg.DATASETS.COCO_FORMAT = []
    # The same for COCO's panoptic format, a list of [name, panoptic json, folder of its PNGs, image
    # folder]. When such a data set is first loaded its PNGs are converted to what training needs,
    # beside their folder or in the folder that a fifth part names (tools/convert_panoptic.py).
    cfg.DATASETS.COCO_PANOPTIC_FORMAT = []
    # Whether evaluations keep the panoptic predictions in COCO's format, in the folder `panoptic`
    # of the evaluator's output.
    cfg.TEST.KEEP_PANOPTIC_PREDICTIONS = False
    # What computes AP of COCO's format: "detectron2", "faster-coco-eval" or "pycocotools";
    # "auto": the first of them that is installed. The metrics are equal.
    cfg.TEST.AP_BACKEND = "auto"
    # Most predictions per image and category that AP of COCO's format counts: 100, as COCO, or more
    # for images of more objects. Models predict at most TEST.DETECTIONS_PER_IMAGE.
    cfg.TEST.AP_MAX_PREDICTIONS = 100
    # Image files that training may fail to read; each is logged, and another image takes its place.
    # With one more it stops and lists them. 0: none may fail. (Evaluations count such images as
    # ones without predictions, and go on.)
    cfg.DATALOADER.MAX_UNREADABLE_IMAGES = 100
    # Pixels of the largest image that training and evaluation read; others count as unreadable.
    cfg.INPUT.MAX_PIXELS = MAX_PIXELS
    # Masks are rasterised by the data loader's workers; polygons, RLE and bitmaps can be mixed.
    cfg.INPUT.MASK_FORMAT = "bitmask"

    # Large scale jitter (arXiv:2012.07177, section 3) instead of MIN_SIZE_TRAIN: the image is
    # scaled to fit a square of SIZE pixels times a random factor from SCALE_RANGE, then cropped or
    # padded to the square.
    cfg.INPUT.LSJ = CfgNode()
    cfg.INPUT.LSJ.ENABLED = False
    cfg.INPUT.LSJ.SIZE = 1024
    cfg.INPUT.LSJ.SCALE_RANGE = [0.1, 2.0]
    # Copy-paste (the same paper): with probability PROB some instances of another training image,
    # each with probability INSTANCE_PROB, are pasted over an image. Both have been augmented as
    # usual before. PROB 0: never.
    cfg.INPUT.COPY_PASTE = CfgNode()
    cfg.INPUT.COPY_PASTE.PROB = 0.0
    cfg.INPUT.COPY_PASTE.INSTANCE_PROB = 0.5


def _add_solver_keys(cfg: CfgNode) -> None:
    # "SGD" (as published) or "AdamW".
    cfg.SOLVER.OPTIMIZER = "SGD"
    # The batch size the schedule was made for. With another SOLVER.IMS_PER_BATCH the learning rate
    # is scaled linearly and the schedule inversely, except keys of the command line. 0: never.
    cfg.SOLVER.REFERENCE_IMS_PER_BATCH = 16
    # Micro-batches into which each process splits its share of a batch, to save memory (gradient
    # accumulation). The gradients are those of the whole batch (docs/training.md), but batch
    # normalisation uses statistics of a micro-batch.
    cfg.SOLVER.ACCUMULATE_STEPS = 1
    # Precision of SOLVER.AMP.ENABLED: "float16", with gradients scaled against underflow, or
    # "bfloat16", which needs no scaling and is fast on CPUs too.
    cfg.SOLVER.AMP.DTYPE = "float16"
    # Keep the channels of a pixel next to each other in memory while training.
    cfg.SOLVER.CHANNELS_LAST = False
    # torch.compile of backbone, head and semantic branch while training: "" for none, "dynamic" (a
    # program for all sizes) or "static" (one for each size of padded batches, of which there should
    # be few).
    cfg.SOLVER.COMPILE = ""
    # SOLVER.CLIP_GRADIENTS.CLIP_TYPE may also be "full_model": the norm (NORM_TYPE) of all
    # gradients together is held at CLIP_VALUE.

    # An exponential moving average (EMA) of the weights, which is evaluated and saved as the model.
    # Training updates the weights themselves, which checkpoints hold in addition.
    cfg.SOLVER.EMA = CfgNode()
    cfg.SOLVER.EMA.ENABLED = False
    # Decay of the average, in [0, 1); at most (1 + i) / (10 + i) after i iterations.
    cfg.SOLVER.EMA.DECAY = 0.9998
    # Evaluations (TEST.EVAL_PERIOD) in a row without a new best checkpoint after which training
    # ends; 0: never.
    cfg.SOLVER.EARLY_STOPPING_PATIENCE = 0


def _add_speed_keys(test: CfgNode) -> None:
    # How `train_net.py --eval-only`, demo/demo.py and Predictor run the model; training and its
    # evaluations ignore these. docs/speed.md has the gain of each.
    test.SPEED = CfgNode()
    # Fold the BatchNorms of the backbone (and of heads with HEAD.NORM "BN") into convolutions:
    # True, False, or None or "auto" (True).
    test.SPEED.FUSE_BN = None
    # Keep the channels of a pixel next to each other in memory: True, False, or None or "auto"
    # (on a CPU, and on CUDA with 16-bit numbers).
    test.SPEED.CHANNELS_LAST = None
    # What convolutions and products of backbone and head compute in (autocast): "float32",
    # "bfloat16" or "float16". Scores, areas and NMS stay in float32.
    test.SPEED.DTYPE = "float32"
    # torch.compile of backbone and head: "" for none, "dynamic" (one program for all sizes),
    # "static" (one for each size of padded batches, of which there should be few) or "cuda-graphs"
    # (the same, recorded as CUDA graphs).
    test.SPEED.COMPILE = ""
