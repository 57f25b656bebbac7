"""What Detectron2's lazy configs say of a training, and what solo_d2/engine/lazy.py adds to it."""

train = dict(
    output_dir="./output",
    init_checkpoint="detectron2://ImageNetPretrained/MSRA/R-50.pkl",
    max_iter=90000,
    amp=dict(enabled=False, dtype="float16"),
    checkpointer=dict(period=5000),
    eval_period=10000,
    device="cuda",
    seed=7,  # fixed, so that a resumed run continues exactly
    # The keys of docs/training.md and docs/weights.md under other names.
    weights_allow=[],
    accumulate_steps=1,
    ema=dict(enabled=False, decay=0.9998),
    clip_full_model=dict(enabled=False, max_norm=35.0, norm_type=2.0),
    early_stopping_patience=0,
)
