"""The Accelerator of a run, and whether it has the processes that were asked for."""

import argparse
import logging
import os

from accelerate import Accelerator, DataLoaderConfiguration

logger = logging.getLogger(__name__)
OWN_LOGGERS = (
    *("train", "train_lungs", "train_detector", "validate", "embed", "probe"),
    *("training", "datasets_scripts", "evaluation", "modeling"),
)


def make_accelerator(args: argparse.Namespace) -> Accelerator:
    """Joins the processes that a launcher started; logging speaks from the first of them.

    Raises:
        ValueError: several processes run that do not know of each other.
    """
    accelerator = Accelerator(
        log_with=None if args.report_to == "none" else args.report_to,
        project_dir=args.output_dir,
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=args.seed),
    )
    main = accelerator.is_main_process
    # Libraries warn; only our own loggers inform. The Hub's client has a line for every request.
    logging.basicConfig(level=logging.WARNING if main else logging.ERROR, format="%(message)s")
    for name in OWN_LOGGERS:
        logging.getLogger(name).setLevel(logging.INFO if main else logging.ERROR)
    started = int(os.environ.get("WORLD_SIZE", 1))
    if started > accelerator.num_processes:
        raise ValueError(
            f"{started} processes run without a GPU, and Accelerate joins them only if the "
            "environment has ACCELERATE_USE_CPU=true."
        )
    if accelerator.num_processes == 1 and "MASTER_ADDR" in os.environ:
        logger.warning(
            "accelerate launch --cpu starts one process whatever --num_processes says; for more: "
            "ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 train.py ..."
        )
    return accelerator
