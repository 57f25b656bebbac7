"""The model that the demo's command line names."""

from argparse import Namespace

from solo_d2 import Predictor


def load_predictor(args: Namespace) -> Predictor:
    """Load the model.

    Raises:
        ConfigError: it cannot be loaded; see `Predictor`.
        DatasetError: likewise.
    """
    options = {"score_thresh": args.confidence_threshold, "on_device": True}
    if args.onnx:
        return Predictor(args.onnx, **options)
    options |= {"device": args.device, "overrides": args.opts}
    if args.config_file:
        return Predictor(args.config_file, args.weights, **options)
    return Predictor(args.weights, **options)
