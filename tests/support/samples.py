"""A small file of every language."""

from __future__ import annotations

SAMPLES: dict[str, tuple[str, str, str]] = {  # language -> (path, code, name)
    "python": ("a.py", "import os\n\n\ndef measure(x):\n    if x:\n        return os.sep\n    return x\n", "measure"),
    "javascript": ("a.js", "import a from 'a';\n\nexport function measure(x) {\n  return a(x) || 1;\n}\n", "measure"),
    "typescript": ("a.ts", "interface S { area(): number }\n\nfunction measure(s: S): number {\n  return s.area();\n}\n", "measure"),
    "tsx": ("a.tsx", "import React from 'react';\n\nfunction Measure(p: {x: number}) {\n  return <b>{p.x}</b>;\n}\n", "Measure"),
    "go": ("a.go", "package a\n\nimport \"fmt\"\n\nfunc measure(x int) int {\n\tfmt.Println(x)\n\treturn x\n}\n", "measure"),
    "rust": ("a.rs", "use std::fmt;\n\npub fn measure(x: u32) -> u32 {\n    match x { 0 => 1, _ => x }\n}\n", "measure"),
    "c": ("a.c", "#include <stdio.h>\n\nint measure(int x)\n{\n    return x > 0 ? x : 1;\n}\n", "measure"),
    "cpp": ("a.cpp", "#include <vector>\n\nint measure(std::vector<int> v)\n{\n    return v.size();\n}\n", "measure"),
    "java": ("A.java", "import java.util.List;\n\nclass Measure {\n    int size(List<String> x) { return x.size(); }\n}\n", "Measure"),
    "ruby": ("a.rb", "require 'set'\n\ndef measure(x)\n  return x.size if x\n  0\nend\n", "measure"),
    "php": ("a.php", "<?php\nuse A\\B;\n\nfunction measure($x) {\n    return count($x);\n}\n", "measure"),
    "csharp": ("a.cs", "using System;\n\nclass Measure {\n    int Size(string x) { return x.Length; }\n}\n", "Measure"),
    "swift": ("a.swift", "import Foundation\n\nfunc measure(x: Int) -> Int {\n    return x > 0 ? x : 1\n}\n", "measure"),
    "kotlin": ("a.kt", "import kotlin.math.abs\n\nfun measure(x: Int): Int {\n    return abs(x)\n}\n", "measure"),
    "bash": ("a.sh", "#!/bin/bash\n\nmeasure() {\n  echo \"$1\"\n}\n", "measure"),
}  # fmt: skip
