// Sizes that Rust plans launches with. build.rs reads them here; no other place states them.
#pragma once

constexpr int kThreads = 128;  // every kernel's block: four warps

// Rows and columns of a tile of B·A.
constexpr int kTile = 64;

// Tokens and features of the tiles of the products with W.
constexpr int kLargeTokens = 128;
constexpr int kMediumTokens = 64;
constexpr int kFeatures = 128;  // of large and medium tiles

// Tokens and features of a tile where there are few tokens.
constexpr int kFewTokens = 64;
constexpr int kFewTokensFeatures = 64;

// Rows of consumer tiles that a group of the tile queue has.
constexpr int kTileRowsPerGroup = 8;
