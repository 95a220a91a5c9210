"""Whose icons the `icons` data set is made of, and the notices that their licences ask for."""

from collections.abc import Mapping
from typing import Any

COPYRIGHTS: dict[str, str] = {
    # MIT
    "akar-icons": "Copyright (c) 2020 Arturo Wibawa",
    "ant-design": "Copyright (c) 2018-present Ant UED, https://xtech.antfin.com/",
    "at-icons": "Copyright (c) 2026 Voxybuns",
    "bi": "Copyright (c) 2019-2025 The Bootstrap Authors",
    "bitcoin-icons": "Copyright (c) Bitcoin Design Community",
    "boxicons": "Copyright (c) 2026 Boxicons",
    "bx": "Copyright (c) 2018 Atisa (Aniket Suvarna)",
    "bxs": "Copyright (c) 2018 Atisa (Aniket Suvarna)",
    "bytesize": "Copyright (c) 2016 Dan Klammer",
    "charm": "Copyright (c) 2021 Jay Newey",
    "clarity": "Copyright (c) VMware, Inc.",
    "codex": "Copyright (c) 2022 CodeX",
    "dinkie-icons": "Copyright (c) 2021-2024 atelierAnchor",
    "duo-icons": "Copyright (c) 2023 fernandcf",
    "ei": "Copyright (c) 2014 Alexander Madyankin, Roman Shamin",
    "eos-icons": "Copyright (c) 2020 SUSE Software Solutions Germany GmbH",
    "ep": "Copyright (c) 2020-present Element Plus (https://github.com/element-plus)",
    "eva": "Copyright (c) 2018 Akveo",
    "f7": "Copyright (c) 2016 Vladimir Kharlampidi",
    "famicons": "Copyright (c) 2022-present Family",
    "fe": "Copyright (c) 2016 Megumi Hano",
    "feather": "Copyright (c) 2014-2017 Cole Bemis",
    "flowbite": "Copyright (c) 2024 Themesberg",
    "fluent": "Copyright (c) Microsoft Corporation",
    "fontisto": "Copyright (c) 2017 FlexibleGrid (@kenangundogan), Inc.",
    "formkit": "Copyright (c) 2021-2026 FormKit, Inc.",
    "glyphs": "Copyright (c) Goran Spasojevic",
    "gravity-ui": "Copyright (c) 2022 YANDEX LLC",
    "griddy-icons": "Copyright (c) 2025 Griddy Icons",
    "healthicons": "Copyright (c) 2021 Resolve to Save Lives",
    "heroicons": "Copyright (c) 2020 Refactoring UI Inc.",
    "heroicons-outline": "Copyright (c) 2020 Refactoring UI Inc.",
    "heroicons-solid": "Copyright (c) 2020 Refactoring UI Inc.",
    "hugeicons": "Copyright (c) 2025 Hugeicons",
    "humbleicons": "Copyright (c) 2021 Jiří Zralý",
    "iconoir": "Copyright (c) 2018 Luca Burgio",
    "ion": "Copyright (c) 2016 Drifty (http://drifty.com/)",
    "ix": "Copyright (c) 2022 Siemens AG",
    "jam": "Copyright (c) 2017 Michael Amprimo",
    "keyline-icons": "Copyright (c) Keyline Icons",
    "lineicons": "Copyright (c) 2023 Lineicons",
    "lsicon": "Copyright (c) 2024 Wis Design",
    "majesticons": "Copyright (c) 2021 Gerrit Halfmann",
    "medical-icon": "Copyright (c) 2014 Samuel Frémondière",
    "meteor-icons": "Copyright (c) 2022 zkreations",
    "mi": "Copyright (c) 2020 Mono Company BV",
    "mynaui": "Copyright (c) Praveen Juge",
    "octicon": "Copyright (c) 2026 GitHub Inc.",
    "oi": "Copyright (c) 2014 Waybury",
    "ooui": "Copyright 2011-2014 OOjs Team and other contributors",
    "pajamas": "Copyright (c) 2011-present GitLab Inc.",
    "ph": "Copyright (c) 2022 Phosphor Icons",
    "pixelarticons": "Copyright (c) 2019 Gerrit Halfmann",
    "proicons": "Copyright (c) 2025 ProCode",
    "qlementine-icons": "Copyright (c) Olivier Cléro",
    "quill": "Copyright (c) 2021 Casper Lourens",
    "radix-icons": "Copyright (c) 2022 WorkOS",
    "reicon": "Copyright (c) 2026 Dev Chauhan",
    "sidekickicons": "Copyright (c) Tailwind Labs, Inc.",
    "simple-line-icons": "Copyright (c) 2016 Sabbir Ahmed & All Contributors",
    "stash": "Copyright (c) 2022 Pingback LLC",
    "tabler": "Copyright (c) 2020-2025 Paweł Kuna",
    "tdesign": "Copyright (c) 2021-present TDesign",
    "teenyicons": "Copyright (c) 2020, Anja van Staden",
    "uiw": "Copyright (c) 2019 uiw",
    "zondicons": "Copyright (c) 2019 dukestreetstudio",
    # ISC; Lucide's Feather part is MIT
    "lucide": "Copyright (c) 2026 Lucide Icons and Contributors; parts Copyright (c) 2014-2017 Cole Bemis (MIT)",
    "lucide-lab": "Copyright (c) 2026 Lucide Icons and Contributors",
    # BSD-3-Clause
    "rivet-icons": "Copyright (c) 2018, Indiana University",
    # Apache-2.0
    "carbon": "Copyright IBM Corp.",
    "cuida": "Copyright Sysvale",
    "garden": "Copyright Zendesk, Inc.",
    "grommet-icons": "Copyright Hewlett Packard Enterprise Development LP",
    "ic": "Copyright Google LLC",
    "icon-park-outline": "Copyright ByteDance",
    "icon-park-solid": "Copyright ByteDance",
    "icon-park-twotone": "Copyright ByteDance",
    "mage": "Copyright MageIcons",
    "material-symbols": "Copyright Google LLC",
    "material-symbols-light": "Copyright Google LLC",
    "mdi": "Copyright Pictogrammers; parts Copyright Google LLC",
    "memory": "Copyright Pictogrammers",
    "mingcute": "Copyright MingCute Design",
    "oui": "Copyright 2021 OpenSearch Contributors; Copyright 2012-2018 Elasticsearch B.V.",
    "ri": "Copyright Remix Design",
    # CC0-1.0
    "maki": "none claimed",
    "osmic": "none claimed",
    "pinhead": "none claimed",
    "temaki": "none claimed",
}
"""The copyright line of every set that may be used, from its own licence file, package or readme; where that
states none (most sets under Apache-2.0, and a few others without a year here), its author stands instead.
Left out, because what their authors say differs from what the package says of their licence: css.gg, Sargam,
PrimeIcons, Unicons, Fluent MDL2 and the Icons8 sets."""

LICENCES: dict[str, str] = {
    "Apache-2.0": """\
Licensed under the Apache License, Version 2.0; a copy of it is the file LICENSE of this distribution. The
drawings have been changed as said above (rendered to small grey images). Unless required by applicable law or
agreed to in writing, they are distributed on an "AS IS" BASIS, WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND,
either express or implied.""",
    "BSD-3-Clause": """\
Redistribution and use in source and binary forms, with or without modification, are permitted provided that
the following conditions are met:

* Redistributions of source code must retain the above copyright notice, this list of conditions and the
  following disclaimer.
* Redistributions in binary form must reproduce the above copyright notice, this list of conditions and the
  following disclaimer in the documentation and/or other materials provided with the distribution.
* Neither the name of the copyright holder nor the names of its contributors may be used to endorse or promote
  products derived from this software without specific prior written permission.

THIS SOFTWARE IS PROVIDED BY THE COPYRIGHT HOLDERS AND CONTRIBUTORS "AS IS" AND ANY EXPRESS OR IMPLIED
WARRANTIES, INCLUDING, BUT NOT LIMITED TO, THE IMPLIED WARRANTIES OF MERCHANTABILITY AND FITNESS FOR A
PARTICULAR PURPOSE ARE DISCLAIMED. IN NO EVENT SHALL THE COPYRIGHT HOLDER OR CONTRIBUTORS BE LIABLE FOR ANY
DIRECT, INDIRECT, INCIDENTAL, SPECIAL, EXEMPLARY, OR CONSEQUENTIAL DAMAGES (INCLUDING, BUT NOT LIMITED TO,
PROCUREMENT OF SUBSTITUTE GOODS OR SERVICES; LOSS OF USE, DATA, OR PROFITS; OR BUSINESS INTERRUPTION) HOWEVER
CAUSED AND ON ANY THEORY OF LIABILITY, WHETHER IN CONTRACT, STRICT LIABILITY, OR TORT (INCLUDING NEGLIGENCE OR
OTHERWISE) ARISING IN ANY WAY OUT OF THE USE OF THIS SOFTWARE, EVEN IF ADVISED OF THE POSSIBILITY OF SUCH
DAMAGE.""",
    "CC0-1.0": """\
Dedicated to the public domain by their authors (https://creativecommons.org/publicdomain/zero/1.0/); named
here out of thanks, not duty.""",
    "ISC": """\
Permission to use, copy, modify, and/or distribute this software for any purpose with or without fee is hereby
granted, provided that the above copyright notice and this permission notice appear in all copies.

THE SOFTWARE IS PROVIDED "AS IS" AND THE AUTHOR DISCLAIMS ALL WARRANTIES WITH REGARD TO THIS SOFTWARE
INCLUDING ALL IMPLIED WARRANTIES OF MERCHANTABILITY AND FITNESS. IN NO EVENT SHALL THE AUTHOR BE LIABLE FOR
ANY SPECIAL, DIRECT, INDIRECT, OR CONSEQUENTIAL DAMAGES OR ANY DAMAGES WHATSOEVER RESULTING FROM LOSS OF USE,
DATA OR PROFITS, WHETHER IN AN ACTION OF CONTRACT, NEGLIGENCE OR OTHER TORTIOUS ACTION, ARISING OUT OF OR IN
CONNECTION WITH THE USE OR PERFORMANCE OF THIS SOFTWARE.""",
    "MIT": """\
Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without
limitation the rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the
Software, and to permit persons to whom the Software is furnished to do so, subject to the following
conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions
of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED
TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL
THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF
CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER
DEALINGS IN THE SOFTWARE.""",
}
"""What each licence asks to be passed on, by SPDX name: the permissive licences that the data set takes."""

_HEAD = """# Notices for the icons data set

`icons.zip` holds small grey images (28 x 28) rendered from the icons of the open-source sets below, as packed in
{source}. Each image is one icon, cropped, scaled and averaged down; `manifest.json` in the file
names the set, the icon, the author and the licence of every image. The artwork belongs to its authors, who do not
endorse this project.
"""


def notices(infos: Mapping[str, Mapping[str, Any]], source: str) -> str:
    """Return NOTICES.md for the sets used, ``infos`` by prefix as in the package's collections.json."""
    parts = [_HEAD.format(source=source)]
    for spdx, text in LICENCES.items():
        sets = [(prefix, info) for prefix, info in sorted(infos.items()) if info["license"]["spdx"] == spdx]
        if sets:
            rows = [_row(prefix, info) for prefix, info in sets]
            table = ["| set | author | copyright | where |", "|---|---|---|---|", *rows]
            parts.append("\n".join((f"## {spdx}", "", *table, "", text, "")))
    return "\n".join(parts)


def _row(prefix: str, info: Mapping[str, Any]) -> str:
    where = info["license"].get("url") or info["author"].get("url", "")
    return f"| {info['name']} (`{prefix}`) | {info['author']['name']} | {COPYRIGHTS[prefix]} | <{where}> |"
