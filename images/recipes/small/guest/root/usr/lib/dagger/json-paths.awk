# Reads one JSON document and prints one line for each scalar: its path (keys and indices joined by "/"), a tab, its
# value. Escapes other than \" \\ and \/ are left as they stand, so a value never holds a tab or a line break.
# JSON is a subset of YAML; a document that is not JSON ends with status 1 and nothing printed.

function path(    level, text) {
    text = ""
    for (level = 1; level <= depth; level++)
        text = text (level > 1 ? "/" : "") (kind[level] == "{" ? key[level] : count[level])
    return text
}

function unescape(text) {
    gsub(/\\"/, "\"", text)
    gsub(/\\\//, "/", text)
    gsub(/\\\\/, "\\", text)
    return text
}

function broken() {
    failed = 1
    exit 1
}

function scalar(text) {
    if (depth == 0 || wants_colon) broken()
    if (kind[depth] == "{" && wants_key) {
        key[depth] = text
        wants_key = 0
        wants_colon = 1
        return
    }
    lines[++line_count] = path() "\t" text
}

function open(bracket) {
    if (wants_colon || kind[depth] == "{" && wants_key) broken()
    depth++
    kind[depth] = bracket
    count[depth] = 0
    key[depth] = ""
    wants_key = (bracket == "{")
}

function close_with(bracket) {
    if (depth == 0 || wants_colon || kind[depth] != bracket) broken()
    depth--
    wants_key = 0
}

BEGIN { depth = 0; wants_colon = 0; failed = 0; line_count = 0 }

# The first line of user-data names its kind.
NR == 1 && /^#/ { next }

{
    rest = $0
    while (1) {
        sub(/^[ \t\r]+/, "", rest)
        if (rest == "") break
        symbol = substr(rest, 1, 1)
        length_used = 1
        if (symbol == "{" || symbol == "[") open(symbol)
        else if (symbol == "}") close_with("{")
        else if (symbol == "]") close_with("[")
        else if (symbol == ",") {
            if (kind[depth] == "{") wants_key = 1
            else count[depth]++
        } else if (symbol == ":") {
            if (!wants_colon) broken()
            wants_colon = 0
        } else if (match(rest, /^"([^"\\]|\\.)*"/)) {
            length_used = RLENGTH
            scalar(unescape(substr(rest, 2, RLENGTH - 2)))
        } else if (match(rest, /^[-+.0-9a-zA-Z]+/)) {
            length_used = RLENGTH
            scalar(substr(rest, 1, RLENGTH))
        } else broken()
        rest = substr(rest, length_used + 1)
    }
}

END {
    if (failed || depth != 0) exit 1
    for (line = 1; line <= line_count; line++) {
        # A network-config may stand below "network", as in netplan's own files.
        sub(/^network\//, "", lines[line])
        print lines[line]
    }
}
