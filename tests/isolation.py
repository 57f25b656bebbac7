"""Process-wide state as it was: Detectron2's catalogs, loggers and the environment."""

import contextlib
import logging
import os
import sys

PACKAGES = ("solo_d2", "detectron2", "fvcore")


@contextlib.contextmanager
def restored():
    """Restore catalogs, loggers and the environment on leaving."""
    environment, loggers, catalogs = dict(os.environ), _loggers(), _catalogs()
    yield
    _restore(os.environ, environment, keep="PYTEST_CURRENT_TEST")
    for logger in set(_loggers()) - set(loggers):
        loggers[logger] = (logging.NOTSET, True, False, [], [])
    for logger, (level, propagate, disabled, handlers, filters) in loggers.items():
        logger.setLevel(level)
        logger.propagate, logger.disabled = propagate, disabled
        logger.handlers[:], logger.filters[:] = handlers, filters
    if module := sys.modules.get("detectron2.utils.logger"):
        module.setup_logger.cache_clear()  # or it leaves out handlers that are gone
    if catalogs:
        module, (loaders, metadata) = sys.modules["detectron2.data.catalog"], catalogs
        _restore(module.DatasetCatalog.data, loaders)
        _restore(
            module.MetadataCatalog.data, {name: entry for name, (entry, _) in metadata.items()}
        )
        for entry, attributes in metadata.values():
            _restore(vars(entry), attributes)


def _loggers():
    names = [n for n in logging.root.manager.loggerDict if n.partition(".")[0] in PACKAGES]
    return {
        x: (x.level, x.propagate, x.disabled, [*x.handlers], [*x.filters])
        for x in map(logging.getLogger, names)
    }


def _catalogs():
    """Loaders by name; metadata and their attributes by name; None before the first import."""
    if module := sys.modules.get("detectron2.data.catalog"):
        metadata = {name: (x, dict(vars(x))) for name, x in module.MetadataCatalog.items()}
        return dict(module.DatasetCatalog), metadata
    return None


def _restore(current, before, keep=None):
    for key in set(current) - set(before) - {keep}:
        del current[key]
    for key, value in before.items():
        if key != keep and current.get(key) is not value:
            current[key] = value
