#!/usr/bin/env bash
# POLICY, PROMPTS (JSONL with a prompt a row), REWARD (URL or adapter's path), OUT; RAY_DASHBOARD of the cluster's head.
set -euo pipefail

ray job submit --address="${RAY_DASHBOARD:-http://127.0.0.1:8265}" -- python3 -m openrlhf.cli.train_ppo_ray \
   --actor.model_name_or_path "$POLICY" \
   --reward.remote_url "$REWARD" \
   --data.prompt_dataset "$PROMPTS" \
   --data.input_key prompt \
   --data.apply_chat_template \
   --data.max_len 1024 \
   --rollout.max_new_tokens 512 \
   --rollout.batch_size 128 \
   --rollout.n_samples_per_prompt 8 \
   --rollout.temperature 1.0 \
   --train.batch_size 1024 \
   --train.micro_batch_size 4 \
   --train.colocate_all \
   --algo.advantage.estimator rloo \
   --algo.kl.init_coef 0.1 \
   --algo.kl.estimator k1 \
   --actor.adam.lr 5e-7 \
   --actor.num_nodes 1 \
   --actor.num_gpus_per_node 8 \
   --actor.gradient_checkpointing_enable \
   --ref.num_nodes 1 \
   --ref.num_gpus_per_node 8 \
   --vllm.num_engines 4 \
   --vllm.tensor_parallel_size 2 \
   --vllm.gpu_memory_utilization 0.6 \
   --vllm.enable_sleep \
   --ds.zero_stage 3 \
   --ds.enable_sleep \
   --ds.param_dtype bf16 \
   --ckpt.output_dir "$OUT" \
   --ckpt.path "$OUT/checkpoints" \
   --ckpt.save_steps 25 \
   --ckpt.load_enable
