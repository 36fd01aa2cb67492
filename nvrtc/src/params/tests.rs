use super::*;

fn read(sources: &[(&str, &str)]) -> Result<Mirror, ParamsError> {
    Mirror::read(sources.iter().copied())
}

const OP: &str = "\
// What all tiles read.
#pragma once

#include \"common/dropout.cuh\"

// Tokens of a tile.
constexpr int kTileTokens = 2 * kWarp, kSlots = (kTileTokens + 8) / 9;
template <typename T>
constexpr int kVector = 16 / sizeof(T);

// What a launch does.
enum class Phase : int {
    kWhole,
    kFirst,
};

struct Slot {
    u32 chunk;
    i64 start, len;  // elements
};

struct Other;

// All of it.
struct OpParams {
    const void* x;
    float scale;  // of x, [T]
    Dropout dropout;
    // Null: not wanted.
    u32* counters;
    Slot slots[kSlots];
    int first, last;
    Phase phase;

    template <typename T>
    __device__ __forceinline__ int sum() const {
        if (first) { return last; }
        return first;
    }
    // Not a field.
    __device__ bool is_whole() const { return phase == Phase::kWhole; }
};

struct Unread : OpParams {
    int& reference;
};
";

const COMMON_FILES: [(&str, &str); 2] = [
    ("common/dropout.cuh", "struct Dropout {\n    u64 seed;\n    u32 threshold;\n};\n"),
    ("common/types.cuh", "constexpr int kWarp = 32;\nconstexpr bool kOn = true;\n"),
];

fn mirror() -> Mirror {
    let files = [("op/params.cuh", OP), COMMON_FILES[0], COMMON_FILES[1]];
    read(&files).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn a_struct_is_mirrored_with_its_holes() {
    let rust = mirror().rust();
    let start = rust.find("    /// All of it.").expect("the struct's comment");
    let end = rust[start..].find("    impl Default").expect("the next item");
    let expected = "    /// All of it.
    #[repr(C)]
    #[derive(Debug, Clone, Copy)]
    pub(crate) struct OpParams {
        pub(crate) x: u64,
        /// of x, \\[T\\]
        pub(crate) scale: f32,
        pub(crate) _padding2: [u8; 4],
        pub(crate) dropout: super::common::Dropout,
        /// Null: not wanted.
        pub(crate) counters: u64,
        pub(crate) slots: [Slot; 8],
        pub(crate) first: i32,
        pub(crate) last: i32,
        pub(crate) phase: Phase,
        pub(crate) _padding8: [u8; 4],
    }

";
    assert_eq!(&rust[start..start + end], expected);
    assert!(rust.contains("slots: [Slot::default(); 8],"), "{rust}");
    assert!(rust.contains("_padding2: [0; 4],"), "{rust}");
    // Contained structs come with it, in the module of their folder.
    assert!(rust.contains("pub(crate) mod common {\n\n    #[repr(C)]"), "{rust}");
    assert!(!rust.contains("Unread") && !rust.contains("Other"), "{rust}");
}

#[test]
fn both_compilers_check_the_layout() {
    let mirror = mirror();
    let (rust, cuda) = (mirror.rust(), mirror.asserts("op"));
    for (field, offset) in
        [("x", 0), ("scale", 8), ("dropout", 16), ("counters", 32), ("slots", 40), ("phase", 240)]
    {
        let in_cuda = format!("static_assert(__INTADDR__(&((OpParams*)0)->{field}) == {offset}, ");
        assert!(cuda.contains(&in_cuda), "{cuda}");
        let in_rust = format!("assert!(std::mem::offset_of!(OpParams, {field}) == {offset});");
        assert!(rust.contains(&in_rust), "{rust}");
    }
    assert!(cuda.contains("static_assert(sizeof(OpParams) == 248, "), "{cuda}");
    assert!(cuda.contains("static_assert(sizeof(Slot) == 24, "), "{cuda}");
    assert!(cuda.contains("static_assert(sizeof(Dropout) == 16, "), "{cuda}");
    assert!(cuda.starts_with("#include \"op/params.cuh\"\n"), "{cuda}");
    assert_eq!(mirror.ops().collect::<Vec<_>>(), ["op"]);
}

#[test]
fn swapped_fields_are_swapped_in_rust() {
    let swapped = OP.replace("int first, last;", "int last, first;");
    let files = [("op/params.cuh", swapped.as_str()), COMMON_FILES[0], COMMON_FILES[1]];
    let rust = read(&files).unwrap().rust();
    let at = |field: &str| rust.find(&format!("pub(crate) {field}: i32")).expect(field);
    assert!(at("last") < at("first"), "{rust}");
}

#[test]
fn constants_and_enums_are_mirrored() {
    let rust = mirror().rust();
    let tokens = "    /// Tokens of a tile.\n    pub(crate) const TILE_TOKENS: usize = 64;\n";
    assert!(rust.contains(tokens), "{rust}");
    assert!(rust.contains("pub(crate) const SLOTS: usize = 8;"), "{rust}");
    // Of files that are not for Rust there are none.
    assert!(!rust.contains("WARP"), "{rust}");
    let phase =
        "    pub(crate) enum Phase {\n        #[default]\n        Whole,\n        First,\n    }";
    assert!(rust.contains(phase), "{rust}");
}

#[test]
fn constants_have_the_names_of_rust() {
    let names = [("kLoraARanks", "LORA_A_RANKS"), ("kStrip16Bit", "STRIP_16_BIT")];
    for (cuda, rust) in names.into_iter().chain([("kStripF32", "STRIP_F32"), ("kTile", "TILE")]) {
        let text = format!("constexpr int {cuda} = 1;\n");
        let found = read(&[("op/sizes.cuh", &text)]).unwrap().rust();
        assert!(found.contains(&format!("const {rust}: usize = 1;")), "{cuda}: {found}");
    }
}

#[test]
fn another_form_is_an_error_with_its_line() {
    let cases = [
        ("    bool wanted;", "`bool` is not a type that Rust can mirror"),
        ("    float& y;", "cannot read `float& y;`"),
        ("    int y = 0;", "cannot read `int y = 0;`"),
        ("    int flag : 1;", "cannot read `int flag : 1;`"),
        ("    float *y, *z;", "cannot read `float *y, *z;`"),
        ("    unsigned int y;", "cannot read `unsigned int y;`: a field has a name"),
        ("    int y[2][3];", "cannot read `int y[2][3];`: an array has one length"),
        ("    int y[kNone];", "`kNone` is not a constant of this op or a common one"),
        ("    int y[1 - 2];", "a length of -1"),
        ("    int y[4 %% 3];", "`%% 3` in `4 %% 3` is no part of a constant expression"),
        ("    static constexpr int kY = 1;", "cannot read `static constexpr int kY = 1;`"),
        ("#ifdef DEBUG", "cannot read `#ifdef DEBUG`"),
        ("    Missing y;", "`Missing` is not a type that Rust can mirror"),
        ("    int y", "cannot read `int y`: a field ends with `;`"),
    ];
    for (line, reason) in cases {
        let text = format!("struct OpParams {{\n    int x;\n{line}\n}};\n");
        let error = read(&[("op.cu", &text)]).expect_err(line);
        assert_eq!((error.file.as_str(), error.line), ("op.cu", 3), "{error}");
        assert!(error.reason.contains(reason), "{line}: {error}");
        assert!(error.to_string().starts_with("kernels/op.cu(3): "), "{error}");
    }
}

#[test]
fn a_struct_that_would_be_passed_over_is_an_error() {
    for text in [
        "\nstruct OpParams { int x; };\n",
        "\nstruct OpParams : Base {\n    int x;\n};\n",
        "\nstruct __align__(16) OpParams {\n};\n",
        "\n    struct OpParams {\n    };\n",
    ] {
        match read(&[("op.cu", text)]) {
            Err(error) => assert_eq!(error.line, 2, "{text}: {error}"),
            Ok(mirror) => panic!("{text} is read as {}", mirror.rust()),
        }
    }
    let error = read(&[("op/params.cuh", "constexpr float kHalf = 0.5f;\n")]).unwrap_err();
    assert_eq!((error.file.as_str(), error.line), ("op/params.cuh", 1), "{error}");
    let circle = "constexpr int kA = kB;\nconstexpr int kB = kA;\n";
    let error = read(&[("op/params.cuh", circle)]).unwrap_err();
    assert!(error.reason.contains("refers to itself"), "{error}");
}
