"""Write tests/vllm.json: the call signatures that cai_nb's vLLM adapter leans on, read from vLLM's own source.

    python tools/vllm_signatures.py FOLDER_OF_AN_UNPACKED_SDIST

vLLM needs a GPU machine and gigabytes of packages; its source needs neither. The test of the adapter binds every call
it makes to these signatures and reads results from objects with these fields alone.
"""

import ast
import json
import sys
from pathlib import Path

WANTED = {
    "vllm/entrypoints/llm.py": {"LLM": ("__init__", "generate", "get_tokenizer")},
    "vllm/engine/arg_utils.py": {"EngineArgs": ("fields",)},
    "vllm/sampling_params.py": {"SamplingParams": ("fields",)},
    "vllm/outputs.py": {"CompletionOutput": ("fields",), "RequestOutput": ("attributes",)},
    "vllm/logprobs.py": {"Logprob": ("fields",)},
}


def signature(f):
    "Parameters of a method, without self: names by kind, and whether it takes any keyword"
    a = f.args
    names = [x.arg for x in a.posonlyargs + a.args][1:]
    needed = names[: len(names) - len(a.defaults)]
    return {"positional": names, "keyword": [x.arg for x in a.kwonlyargs], "needed": needed, "any": a.kwarg is not None}


def members(cls, what):
    "What one entry of WANTED asks of a class"
    if what == "fields":
        return [n.target.id for n in cls.body if isinstance(n, ast.AnnAssign)]
    methods = {n.name: n for n in cls.body if isinstance(n, ast.FunctionDef)}
    if what == "attributes":
        return sorted({t.attr for n in ast.walk(methods["__init__"]) if isinstance(n, ast.Assign)
                       for t in n.targets if isinstance(t, ast.Attribute)})
    return signature(methods[what])


def main(folder):
    "All of WANTED from the source in `folder`"
    folder = Path(folder)
    info = (folder / "PKG-INFO").read_text(encoding="utf-8")
    found = {"version": next(line.split()[1] for line in info.splitlines() if line.startswith("Version:"))}
    for path, classes in WANTED.items():
        tree = ast.parse((folder / path).read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and node.name in classes:
                found[node.name] = {what: members(node, what) for what in classes[node.name]}
    return found


if __name__ == "__main__":
    out = Path(__file__).parents[1] / "tests" / "vllm.json"
    out.write_text(json.dumps(main(sys.argv[1]), indent=1) + "\n", encoding="utf-8")
    print(f"{out.name}: vLLM {json.loads(out.read_text())['version']}")
