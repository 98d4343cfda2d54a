"""The three trainings on processes that divide the weights among them, by FSDP or DeepSpeed's ZeRO-3.

    accelerate launch --config_file recipes/accelerate/fsdp.yaml --num_processes 2 --mixed_precision no tests/divided.py MODEL OUT

accelerate divides weights on accelerators only. Both libraries can do it on a CPU too, so this program tells accelerate that it may;
everything else is as on a machine with GPUs.
"""

import json
import os
import sys
from pathlib import Path

import accelerate.state as state
from accelerate.utils import DistributedType


def allow_fsdp():
    "Several CPU processes count as accelerators where a launcher asks for FSDP"
    begin = state.AcceleratorState.__init__

    def init(self, *args, fsdp_plugin=None, **settings):
        begin(self, *args, fsdp_plugin=fsdp_plugin, **settings)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.fsdp_plugin = fsdp_plugin
            self.distributed_type = state.PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    state.AcceleratorState.__init__ = init


def allow_deepspeed():
    "The same for DeepSpeed, which must not hear of `use_cpu`"
    import cai_nb.training as training

    begin, defaults = state.PartialState.__init__, training.trainer_defaults

    def init(self, cpu=False, backend=None, **settings):
        begin(self, cpu=False, **settings)
        self.backend, self.num_processes = "gloo", int(os.environ["WORLD_SIZE"])
        self.process_index = self.local_process_index = int(os.environ["RANK"])

    state.PartialState.__init__ = init
    training.trainer_defaults = lambda n=0: defaults(n) | {"use_cpu": False, "ddp_backend": None}


def asked(name):
    return os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true"


def learn(model, out):
    "Fine-tuning, preference model and PPO of one model; gives back what they report"
    from test_preference import comparison

    from cai_nb.dialogue import assistant, user
    from cai_nb.model import LanguageModel
    from cai_nb.ppo import PPOConfig, PPOTrainer
    from cai_nb.preference import PreferenceSettings, train_preference_model
    from cai_nb.sft import SFTSettings, finetune
    from cai_nb.training import lora_config, trainer_defaults

    words = ("tea", "rain", "moss", "bread", "a kettle of soup", "x", "yes and no", "trains")
    examples = [{"prompt": [user(f"Say {w}")], "completion": [assistant(f"Yes, {w}!")], "learn_end": w != "x"} for w in words]
    pairs = [comparison(i, p) for i, p in enumerate((0.9, 0.8, 0.1, 0.6, 1.0, 0.5, 0.3, 0.7, 0.2, 0.9))]
    found = {}
    for rank in (4, 0):
        more = dict(epochs=4, batch_size=8, learning_rate=1e-3, max_length=512, lora_rank=rank)
        if not rank or not asked("DEEPSPEED"):  # it wants one type of numbers; with mixed_precision: bf16 all are of that
            found[f"sft {rank}"] = finetune(model, examples, out / f"sft-{rank}", SFTSettings(**more, schedule="constant"))["curve"]
            pm = train_preference_model(model, pairs, out / f"pm-{rank}", PreferenceSettings(**more, heldout=0.2))
            found[f"pm {rank}"] = [*pm["curve"], {"loss": pm["cross_entropy"]}]
        args = trainer_defaults() | {
            "rollouts": 3, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "num_mini_batches": 2, "num_ppo_epochs": 2,
            "max_completion_length": 24, "sampling_batch_size": 4, "learning_rate": 1e-2, "seed": 0,
        }  # fmt: skip
        lm = LanguageModel.load(model, dtype="float32")
        trainer = PPOTrainer(
            lm,
            lambda prompts, completions, **columns: [float(len(c)) for c in completions],
            PPOConfig(str(out / f"ppo-{rank}"), **args),
            [{"prompt": [user("x" * k)]} for k in range(3, 19)],
            peft_config=lora_config(lm.model, rank, 0.5) if rank else None,
        )
        generate, lengths = trainer.generate, []

        def noted(rows, key, generate=generate, lengths=lengths):
            rows = generate(rows, key)
            lengths.append(max(len(r.completion_ids) for r in rows))
            return rows

        trainer.generate = noted
        trainer.train()
        trainer.save_model(str(out / f"ppo-{rank}" / "model"))
        found[f"ppo {rank}"] = [h for h in trainer.state.log_history if "rollout" in h]
        found[f"lengths {rank}"] = lengths
        divided = any(hasattr(p, "placements") or hasattr(p, "ds_id") for p in trainer.model_wrapped.parameters())
        found[f"divided {rank}"] = divided
    return found


def main():
    from cai_nb.distributed import together

    out = Path(sys.argv[2])
    found = together(learn, sys.argv[1], out)
    (out / "found.json").write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    if asked("FSDP"):
        allow_fsdp()
    if asked("DEEPSPEED"):
        allow_deepspeed()
    from cai_nb.distributed import lead

    sys.exit(lead(main))
