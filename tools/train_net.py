"""Train or evaluate with Detectron2; ``mtl-train-net`` is the same command."""

from mtl_plugins.d2.train_net import argument_parser, main, setup

__all__ = ["argument_parser", "main", "setup"]

if __name__ == "__main__":
    main()
