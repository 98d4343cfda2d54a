"""Constitutional AI in notebooks: critique, revision and AI feedback, from one laptop to many GPUs."""

from importlib import import_module

__version__ = "0.0.1"

_MODULES = {  # module -> what it offers here; loaded when it is first used, so that `import cai_nb` loads no torch
    "dialogue": "CaiError user assistant system",
    "constitution": "Constitution Ensemble Principle",
    "model": "LanguageModel",
    "backends": "ServerModel VLLMModel open_model",
    "records": "Records",
    "prompts": "load_prompts split_prompts",
    "revision": "RevisionConfig revise trace_html",
    "sft": "SFTSettings sft_examples finetune",
    "stats": "accuracy bootstrap",
    "pairs": "sample_pairs load_comparisons label_accuracy",
    "feedback": "multiple_choice contrastive_choice chain_of_thought contrastive_log_likelihood pointwise ensemble",
    "judge": "Judge Judges",
    "preference": "PreferenceModel PreferenceSettings train_preference_model",
    "ppo_model": "PPOConfig",
    "ppo": "PPOTrainer",
    "measures": "measure refuses",
    "responses": "sample_responses",
    "evaluation": "RuleJudge evaluate win_rate",
    "recipe": "load_recipe",
    "stages": "run_recipe",
}
_HOME = {name: module for module, names in _MODULES.items() for name in names.split()}
__all__ = ["__version__", *_HOME]


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__():
    return sorted({*globals(), *_HOME})
