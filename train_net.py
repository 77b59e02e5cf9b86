#!/usr/bin/env python
"""Train or evaluate SpatialFlow; ``train_net.py --help`` has examples."""

from spatialflow.engine import Trainer, argument_parser, launch, read_config, setup
from spatialflow.errors import exit_on_user_error, reading_user_input
from spatialflow.inference import load_model


def main(args):
    """What each process does."""
    with reading_user_input():
        cfg = setup(args)
    if args.eval_only:
        with reading_user_input():
            model = load_model(cfg, resume=args.resume)
        Trainer.test(cfg, model)
        return
    with reading_user_input():
        trainer = Trainer(cfg)
        trainer.resume_or_load(args.resume)
    trainer.train()


if __name__ == "__main__":
    args = argument_parser().parse_args()
    with exit_on_user_error():
        with reading_user_input():
            device = read_config(args).MODEL.DEVICE
        launch(
            main,
            args.num_gpus,
            args.num_machines,
            args.machine_rank,
            args.dist_url,
            args=(args,),
            device=device,
        )
