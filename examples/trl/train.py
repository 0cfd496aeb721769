"""RLOO by TRL with the KL weighted by the reward's variance; started by ``accelerate launch``.

    accelerate launch --config_file fsdp2.yaml train.py --config rloo.yaml --policy POLICY --reward rm \
        --reference reference.jsonl --out out [--objective proportional] [--lora-rank 16]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import yaml
from datasets import Dataset
from peft import LoraConfig
from transformers.trainer_utils import get_last_checkpoint
from trl import RLOOConfig

from prudent import RewardModel
from prudent.data.pools import read_pool
from prudent.policies.trl import VarianceAwareRLOOTrainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="YAML of RLOOConfig's fields")
    parser.add_argument("--policy", required=True, help="folder or hub id")
    parser.add_argument("--reward", required=True, help="folder that prudent fit wrote")
    parser.add_argument("--reference", type=Path, required=True, help="pool: prompts with samples of the reference")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--objective", default="proportional")
    parser.add_argument("--lora-rank", type=int, default=16, help="0 trains all weights")
    given = parser.parse_args()
    args = RLOOConfig(output_dir=str(given.out), **yaml.safe_load(given.config.read_text(encoding="utf-8")))
    reference = read_pool(given.reference)
    lora = LoraConfig(r=given.lora_rank, lora_alpha=2 * given.lora_rank, target_modules="all-linear")
    trainer = VarianceAwareRLOOTrainer(
        model=given.policy,
        args=args,
        reward_function=RewardModel.load(given.reward).as_reward_function(
            given.objective, weighted_kl=True, beta=args.beta, reference=reference
        ),
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in reference.prompts]),
        peft_config=lora if given.lora_rank else None,
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(args.output_dir) if given.out.is_dir() else None)
    trainer.save_model(str(given.out / "policy"))
    if trainer.accelerator.is_main_process:
        (given.out / "history.json").write_text(json.dumps(trainer.state.log_history, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
