"""All config keys of this project, with meaning, unit and source.

`add_solo_config(cfg)` extends Detectron2's defaults. Each key is read by exactly one constructor
(`from_config`) or one function of the trainer.
"""

from detectron2.config import CfgNode

from solo_d2.utils.images import MAX_PIXELS


def add_solo_config(cfg: CfgNode) -> None:
    """Add the keys of SOLO to Detectron2's config, in place.

    Importing `solo_d2.modeling` registers the models; `solo_d2.add_solo_config` does both.

    Args:
        cfg: result of `detectron2.config.get_cfg()`.
    """
    # The classes, as the categories of a COCO json: [{"id": 1, "isthing": 1, "name": "cat"}, ...],
    # things in the order of their indices, then stuff. Training sets it from the first data set of
    # DATASETS.TRAIN and saves it in config.yaml and each checkpoint. Inference uses the classes of
    # the checkpoint. []: unknown, taken from the data sets.
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
    _add_tiles_keys(cfg.TEST)


def _add_grid_keys(solo: CfgNode) -> None:
    # Number of thing classes K. 0: take it from the metadata of DATASETS.TRAIN[0].
    solo.NUM_CLASSES = 0
    # Backbone feature of each grid, finest first.
    solo.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    # Stride in input pixels of each level; features with another stride are resized bilinearly
    # (published: P2 is halved, P6 is resized to the size of P5).
    solo.STRIDES = [8, 8, 16, 32, 32]
    # Grid side S of each level: S x S cells over the padded input.
    solo.NUM_GRIDS = [40, 36, 24, 16, 12]
    # Instance scale sqrt(w * h) in input pixels assigned to each level, both ends inclusive. The
    # ranges overlap, so an instance may be assigned to two levels.
    solo.SCALE_RANGES = [[1, 96], [48, 192], [96, 384], [192, 768], [384, 2048]]
    # Size of the center region relative to the box (SOLO paper: epsilon = 0.2).
    solo.CENTER_SCALE = 0.2
    # Rule for cells that several instances claim:
    # "all": each keeps its mask sample, the class is the last one's (SOLOv2 as published),
    # "last": the cell belongs to the last one (SOLO and Decoupled SOLO as published), or
    # "nearest": the cell belongs to the instance whose mass center is nearest to the cell's center;
    # ties go to the smaller, then to the earlier instance.
    solo.CELL_CONFLICT = "all"
    # Target of the mask branch: "mask", or "contour" (SOLO paper, section 6), the boundary pixels
    # of the downsampled mask. Cells, scales and centers are computed from the masks in both cases.
    solo.MASK_TARGET = "mask"


def _add_head_keys(solo: CfgNode) -> None:
    solo.HEAD = CfgNode()
    # Name in SOLO_HEAD_REGISTRY.
    solo.HEAD.NAME = "SOLOv2Head"
    # Number of 3x3 convolutions of each tower, and their channels.
    solo.HEAD.NUM_CONVS = 4
    solo.HEAD.CONV_DIM = 512
    # Norm of towers and mask feature; "GN" is GroupNorm with 32 groups.
    solo.HEAD.NORM = "GN"
    # Initial class probability (focal loss paper, section 3.3).
    solo.HEAD.PRIOR_PROB = 0.01
    # How a level's feature is resized to the S x S grid (SOLO paper, ablations): "interpolate",
    # "max_pool" (adaptive) or "region_grid" (mean of dense bilinear samples in each cell).
    solo.HEAD.ALIGN = "interpolate"
    # Kind of deformable convolution in the towers ("" for none, "v1", or "v2" for modulated), and
    # the number of such convolutions at the end of each tower.
    solo.HEAD.DEFORM = ""
    solo.HEAD.NUM_DEFORM_CONVS = 1
    # SOLO and Decoupled SOLO: number of convolutions at the start of the mask towers that get
    # coordinates (SOLO paper, table 3).
    solo.HEAD.NUM_COORD_CONVS = 1
    # SOLOv2: side of the dynamic kernels, 1 or 3 (paper, table 3a). The kernel length is
    # D = side^2 * MASK_FEATURE.OUT_CHANNELS.
    solo.HEAD.KERNEL_SIZE = 1
    # SOLOv2: whether the kernel branch gets coordinates (paper, table 3b).
    solo.HEAD.KERNEL_COORDS = True

    # SOLOv2: the mask feature (paper, section 2.1.2).
    solo.MASK_FEATURE = CfgNode()
    # "unified", or "separate": one per level, from SOLO's mask tower (paper, table 3d).
    solo.MASK_FEATURE.TYPE = "unified"
    # Unified: backbone features to merge at the stride of the first one, finest first.
    solo.MASK_FEATURE.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    # Separate: number of convolutions of the tower.
    solo.MASK_FEATURE.NUM_CONVS = 7
    # Channels before and after the last 1x1 convolution; the latter is E.
    solo.MASK_FEATURE.CONV_DIM = 128
    solo.MASK_FEATURE.OUT_CHANNELS = 256
    # Whether the coarsest feature (separate: each) gets coordinates (paper, table 3b).
    solo.MASK_FEATURE.COORDS = True
    # Kind of deformable convolution in the mask feature: "", "v1" or "v2".
    solo.MASK_FEATURE.DEFORM = ""


def _add_loss_keys(solo: CfgNode) -> None:
    solo.LOSS = CfgNode()
    # Weights of the category loss and of the mask loss (lambda of SOLO's equation 1).
    solo.LOSS.CLS_WEIGHT = 1.0
    solo.LOSS.MASK_WEIGHT = 3.0
    # Name in MASK_LOSSES of solo_d2/losses.py: "dice", "bce" or "focal" (SOLO paper, table 4, with
    # weights 3, 10 and 20).
    solo.LOSS.MASK_TYPE = "dice"
    # "bce": weight of pixels inside the mask.
    solo.LOSS.MASK_POS_WEIGHT = 2.0
    # Parameters of the category loss and of the mask loss "focal".
    solo.LOSS.FOCAL_ALPHA = 0.25
    solo.LOSS.FOCAL_GAMMA = 2.0
    # Approximate limit of a loss's temporary memory in MiB; 0: 64, on CUDA 1,024. Larger masks are
    # computed in strips of rows and recomputed for the gradient. The losses do not depend on it.
    solo.LOSS.MEMORY_MIB = 0


def _add_inference_keys(solo: CfgNode) -> None:
    # Minimum class probability of a candidate, exclusive.
    solo.SCORE_THRESH_TEST = 0.1
    # Minimum probability of a pixel of a mask or contour, exclusive.
    solo.MASK_THRESH_TEST = 0.5
    # Maximum number of candidates that enter mask NMS.
    solo.PRE_NMS_TOPK = 500
    # On CUDA: number of candidates that are decoded with fixed shapes, without synchronization, at
    # least PRE_NMS_TOPK. Images for which more could matter are decoded again, as on the CPU. 0:
    # all are decoded as on the CPU. Results do not depend on it.
    solo.LANES = 1000
    # Minimum score after mask NMS, inclusive. At most TEST.DETECTIONS_PER_IMAGE are kept.
    solo.KEEP_THRESH_TEST = 0.05
    # Backend for thresholding and resizing masks: "auto" by device, "torch" (the reference),
    # "tiled" (for the CPU) or "triton" (CUDA). Results differ only by rounding.
    solo.MASK_BACKEND = "auto"
    solo.NMS = CfgNode()
    # Name in the table NMS of solo_d2/inference.py: "matrix", "hard", "soft" or "fast". Each reads
    # the keys here with the names of its parameters.
    solo.NMS.TYPE = "matrix"
    # "matrix" and "soft": "gaussian" (exp(-sigma * iou^2)) or "linear" (1 - iou).
    solo.NMS.KERNEL = "gaussian"
    # "matrix" and "soft", gaussian: the sharpness; the papers' sigma is its inverse.
    solo.NMS.SIGMA = 2.0
    # "hard" and "fast": masks that overlap a better one of their class by more than this IoU are
    # removed. "soft", linear: their score is lowered (Soft-NMS paper: 0.3).
    solo.NMS.THRESH = 0.5
    # Whether masks of different classes suppress each other.
    solo.NMS.CLASS_AGNOSTIC = False
    # "auto" by device, "torch" (the reference), "tiled" (for the CPU) or "triton" (CUDA). Pixel
    # counts are equal; scores agree up to float32 rounding.
    solo.NMS.BACKEND = "auto"


def _add_backbone_keys(model: CfgNode) -> None:
    # BACKBONE.NAME "build_solo_resnet_fpn_backbone" reads Detectron2's keys RESNETS and FPN.
    # RESNETS.NORM may also be "EvalBN": BatchNorm with fixed running statistics and trained scale
    # and shift, as in the authors' recipe (mmdetection's norm_eval).

    # "build_solo_swin_fpn_backbone"; FPN.IN_FEATURES are its stages, "p0" to "p3". Defaults are
    # those of Swin-T (arXiv:2103.14030, section 3.3 and, for detection, appendix A2.2).
    model.SWIN = CfgNode()
    # Channels of the first stage, doubled from stage to stage.
    model.SWIN.EMBED_DIM = 96
    # Number of blocks and attention heads of each stage.
    model.SWIN.DEPTHS = [2, 2, 6, 2]
    model.SWIN.NUM_HEADS = [3, 6, 12, 24]
    # Side of the attention windows in tokens.
    model.SWIN.WINDOW_SIZE = 7
    # Stochastic depth: probability of dropping the last block in training, increasing linearly
    # from 0 over the blocks.
    model.SWIN.DROP_PATH_RATE = 0.2

    # "build_solo_vit_backbone"; reads FPN.OUT_CHANNELS and FPN.NORM, which must not be "". Defaults
    # are those of ViT-B (ViTDet, arXiv:2203.16527, section 3 and appendix).
    model.VIT = CfgNode()
    # Number of channels, blocks and attention heads. Patches have 16 x 16 pixels.
    model.VIT.EMBED_DIM = 768
    model.VIT.DEPTH = 12
    model.VIT.NUM_HEADS = 12
    # Indices of blocks with global attention; the others use windows with this side in patches.
    model.VIT.GLOBAL_BLOCKS = [2, 5, 8, 11]
    model.VIT.WINDOW_SIZE = 14
    # Side in pixels for which the global blocks store relative positions; they are interpolated for
    # images of other sizes, which need not be square.
    model.VIT.IMAGE_SIZE = 1024
    # As SWIN.DROP_PATH_RATE.
    model.VIT.DROP_PATH_RATE = 0.1
    # Layer-wise decay: factor of the learning rate from each block to the one before it, with
    # SOLVER.OPTIMIZER "AdamW"; 1.0: none.
    model.VIT.LR_DECAY = 0.7

    # "build_solo_regnet_fpn_backbone"; FPN.IN_FEATURES are its stages, "s1" to "s4". Defaults are
    # those of RegNetX-4.0GF (arXiv:2003.13678, section 3.3 and pycls' dds_baselines).
    model.REGNET = CfgNode()
    # Channels of the stem.
    model.REGNET.STEM_WIDTH = 32
    # Total number of blocks; the width of block j is W_0 + W_A * j, quantized to W_0 * W_M^k.
    model.REGNET.DEPTH = 23
    model.REGNET.W_A = 38.65
    model.REGNET.W_0 = 96
    model.REGNET.W_M = 2.43
    # Channels per group of the 3x3 convolutions.
    model.REGNET.GROUP_WIDTH = 40
    # Width of squeeze-and-excitation relative to the block's input; 0: none (RegNetX; Y: 0.25).
    model.REGNET.SE_RATIO = 0.0
    # "FrozenBN" for pretrained weights, or another norm of Detectron2.
    model.REGNET.NORM = "FrozenBN"

    # "build_solo_timm_fpn_backbone": any timm model with features of several strides, named like
    # those of Detectron2's ResNet: FPN.IN_FEATURES "res2" has stride 4, "res5" stride 32.
    model.TIMM = CfgNode()
    # Name in timm, such as "convnext_tiny", optionally with its weights ("convnext_tiny.fb_in1k").
    # Weights are random: to load those of timm's hub, set MODEL.WEIGHTS "timm://NAME".
    model.TIMM.NAME = ""
    # Whether images are normalized as for the pretrained timm model, instead of by PIXEL_MEAN and
    # PIXEL_STD. The model gets RGB in both cases, regardless of INPUT.FORMAT.
    model.TIMM.OWN_NORMALIZATION = True
    # Mode of its BatchNorms: "FrozenBN" and "EvalBN" use fixed running statistics (see above), "BN"
    # and "SyncBN" those of the batch. Other norms are not changed.
    model.TIMM.NORM = "FrozenBN"
    # As SWIN.DROP_PATH_RATE.
    model.TIMM.DROP_PATH_RATE = 0.0
    # As VIT.LR_DECAY, for models whose blocks timm lists.
    model.TIMM.LR_DECAY = 1.0


def _add_weights_keys(model: CfgNode) -> None:
    # MODEL.WEIGHTS accepts files of this project, Detectron2, AdelaiDet, the SOLO authors' code,
    # mmdetection, torchvision and timm. The weights of a model must match it exactly, those of a
    # backbone the backbone. Parameters that match these patterns ("*": any characters) may be
    # missing, unexpected or of another shape, and keep their initial values. To train other classes
    # from a trained model: ["head.class_logits.*"].
    model.WEIGHTS_ALLOW = []


def _add_panoptic_keys(cfg: CfgNode) -> None:
    # MODEL.META_ARCHITECTURE "PanopticSOLO" reads keys of Detectron2 too: in MODEL.SEM_SEG_HEAD
    # IN_FEATURES (merged at the stride of the first one), CONVS_DIM, NORM, NUM_CLASSES (stuff
    # classes and one for all things), IGNORE_VALUE and LOSS_WEIGHT; in MODEL.PANOPTIC_FPN.COMBINE
    # OVERLAP_THRESH, STUFF_AREA_LIMIT and INSTANCES_CONFIDENCE_THRESH. The other keys of these
    # sections (NAME, COMMON_STRIDE, INSTANCE_LOSS_WEIGHT, COMBINE.ENABLED) belong to other models.
    semantic = cfg.MODEL.SEM_SEG_HEAD
    # 0: take it from the metadata of the data set.
    semantic.NUM_CLASSES = 0
    # Whether the semantic logits are computed from SOLOv2's unified mask feature instead of a
    # separate branch (SOLOv2 paper, section 3.2). IN_FEATURES, CONVS_DIM, NORM and COORDS then have
    # no effect.
    semantic.SHARE_MASK_FEATURE = False
    # Whether the coarsest feature gets coordinates, as in the mask feature.
    semantic.COORDS = True


def _add_data_keys(cfg: CfgNode) -> None:
    # Data sets in COCO format to register, as a list of [name, json file, image folder], with names
    # for DATASETS.TRAIN and DATASETS.TEST.
    cfg.DATASETS.COCO_FORMAT = []
    # The same for COCO's panoptic format, as a list of [name, panoptic json, folder of its PNGs,
    # image folder]. When such a data set is first loaded, its PNGs are converted for training,
    # beside their folder or in a folder given as a fifth element (tools/convert_panoptic.py).
    cfg.DATASETS.COCO_PANOPTIC_FORMAT = []
    # Whether evaluations keep the panoptic predictions in COCO format, in the folder `panoptic` of
    # the evaluator's output.
    cfg.TEST.KEEP_PANOPTIC_PREDICTIONS = False
    # Implementation of COCO AP: "detectron2", "faster-coco-eval" or "pycocotools"; "auto": the
    # first one that is installed. The metrics are equal.
    cfg.TEST.AP_BACKEND = "auto"
    # Maximum number of predictions per image and category that COCO AP counts: 100 as in COCO, or
    # more for images with more objects. Models predict at most TEST.DETECTIONS_PER_IMAGE.
    cfg.TEST.AP_MAX_PREDICTIONS = 100
    # Maximum number of unreadable image files in training; each is logged and replaced by another
    # image. Above it, training stops and lists them. (Evaluations count unreadable images as images
    # without predictions.)
    cfg.DATALOADER.MAX_UNREADABLE_IMAGES = 100
    # Maximum pixels of an image in training and evaluation; larger images count as unreadable.
    cfg.INPUT.MAX_PIXELS = MAX_PIXELS
    # Masks are rasterized by the data loader's workers; polygons, RLE and bitmaps can be mixed.
    cfg.INPUT.MASK_FORMAT = "bitmask"

    # Large scale jitter (arXiv:2012.07177, section 3) instead of MIN_SIZE_TRAIN: the image is
    # scaled to fit a square of SIZE pixels times a random factor from SCALE_RANGE, then cropped or
    # padded to the square.
    cfg.INPUT.LSJ = CfgNode()
    cfg.INPUT.LSJ.ENABLED = False
    cfg.INPUT.LSJ.SIZE = 1024
    cfg.INPUT.LSJ.SCALE_RANGE = [0.1, 2.0]
    # Copy-paste (the same paper): with probability PROB, instances of another training image, each
    # with probability INSTANCE_PROB, are pasted onto an image, after other augmentations of both.
    # PROB 0: never.
    cfg.INPUT.COPY_PASTE = CfgNode()
    cfg.INPUT.COPY_PASTE.PROB = 0.0
    cfg.INPUT.COPY_PASTE.INSTANCE_PROB = 0.5


def _add_solver_keys(cfg: CfgNode) -> None:
    # "SGD" (as published) or "AdamW".
    cfg.SOLVER.OPTIMIZER = "SGD"
    # Batch size of the schedule. With another SOLVER.IMS_PER_BATCH the learning rate is scaled
    # linearly and the schedule inversely, except keys set on the command line. 0: never.
    cfg.SOLVER.REFERENCE_IMS_PER_BATCH = 16
    # Number of micro-batches of each process for gradient accumulation, to save memory. Gradients
    # equal those of the whole batch (docs/training.md), but batch normalization uses statistics of
    # a micro-batch.
    cfg.SOLVER.ACCUMULATE_STEPS = 1
    # Precision of SOLVER.AMP.ENABLED: "float16", with gradients scaled against underflow, or
    # "bfloat16", which needs no scaling and is fast on CPUs too.
    cfg.SOLVER.AMP.DTYPE = "float16"
    # Whether training uses the memory format torch.channels_last.
    cfg.SOLVER.CHANNELS_LAST = False
    # Whether 3x3 convolutions use Winograd's algorithm, in the format torch.channels_last: True,
    # False, or None or "auto" (in float32 on an x86 CPU, for models with many channels).
    cfg.SOLVER.WINOGRAD = None
    # Whether GroupNorms and ReLUs of the head are computed twice, which needs less memory: True,
    # False, or None or "auto" (on a CPU, for models with many channels, without COMPILE).
    cfg.SOLVER.RECOMPUTE = None
    # torch.compile of backbone, head and semantic branch in training: "" for none, "dynamic" (one
    # program for all sizes) or "static" (one for each size of padded batches, for few sizes).
    cfg.SOLVER.COMPILE = ""
    # SOLVER.CLIP_GRADIENTS.CLIP_TYPE may also be "full_model": the norm (NORM_TYPE) of all
    # gradients together is limited to CLIP_VALUE.

    # An exponential moving average (EMA) of the weights, which is evaluated and saved as the model.
    # Checkpoints also contain the trained weights.
    cfg.SOLVER.EMA = CfgNode()
    cfg.SOLVER.EMA.ENABLED = False
    # Decay of the average, in [0, 1); at most (1 + i) / (10 + i) after i iterations.
    cfg.SOLVER.EMA.DECAY = 0.9998
    # Number of consecutive evaluations (TEST.EVAL_PERIOD) without a new best checkpoint after which
    # training ends; 0: never.
    cfg.SOLVER.EARLY_STOPPING_PATIENCE = 0


def _add_speed_keys(test: CfgNode) -> None:
    # Options of `train_net.py --eval-only`, demo/demo.py and Predictor; ignored in training and its
    # evaluations. docs/speed.md lists the gain of each.
    test.SPEED = CfgNode()
    # Whether to fold the BatchNorms of the backbone (and of heads with HEAD.NORM "BN") into
    # convolutions: True, False, or None or "auto" (True).
    test.SPEED.FUSE_BN = None
    # Whether to use torch.channels_last: True, False, or None or "auto" (on a CPU, and on CUDA with
    # 16-bit dtypes).
    test.SPEED.CHANNELS_LAST = None
    # Whether 3x3 convolutions on a CPU use Winograd's algorithm: True, False, or None or "auto" (in
    # float32 on an x86 CPU, without COMPILE). Keeps transformed weights: 0.5 GiB for R50.
    test.SPEED.WINOGRAD = None
    # Precision of backbone and head (autocast): "float32", "bfloat16" or "float16". Scores, areas
    # and NMS stay in float32.
    test.SPEED.DTYPE = "float32"
    # torch.compile of backbone and head: "" for none, "dynamic" (one program for all sizes),
    # "static" (one for each size of padded batches, for few sizes) or "cuda-graphs" (the same,
    # recorded as CUDA graphs).
    test.SPEED.COMPILE = ""


def _add_tiles_keys(test: CfgNode) -> None:
    # Tiled inference of large images with small objects (solo_d2/modeling/tiles.py), by
    # `train_net.py --eval-only`, demo/demo.py and Predictor; training's evaluations and TEST.AUG
    # ignore it. Each tile is resized by INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST as an image is.
    test.TILES = CfgNode()
    # Side of a tile in pixels of the original image; 0: no tiles. The scale of objects is as in
    # training where tiles are as large as training images. TEST.DETECTIONS_PER_IMAGE is the limit
    # of a tile.
    test.TILES.SIZE = 0
    # Pixels that neighbouring tiles share at least, less than SIZE; None: a quarter of SIZE.
    # Objects up to this size are whole in some tile.
    test.TILES.OVERLAP = None
    # Whether objects larger than the overlap are taken from a pass over the whole image too.
    test.TILES.WHOLE_IMAGE = False
