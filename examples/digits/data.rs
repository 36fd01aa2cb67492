//! The demonstration's data: handwritten digits, turned on their side, and a network that was
//! trained on upright ones.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use safetensors::{SafeTensorError, SafeTensors};

use fused_dora_testkit::case::decode;

/// Pixels along an image's edge.
const EDGE: usize = 8;
/// Pixels of an image.
pub const PIXELS: usize = EDGE * EDGE;
/// The digits 0 to 9.
pub const CLASSES: usize = 10;
/// The value of the darkest pixel.
const PIXEL_MAX: f32 = 16.0;
/// The last rows of the file are for testing.
const TEST_ROWS: usize = 500;
/// Layers of the network.
pub const LAYERS: usize = 3;

/// Why the data cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    #[error("{}: {source}; the file comes with the repository (examples/data)", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error(
        "{}: truncated or not gzip ({source}); restore it from the repository", .path.display()
    )]
    Gzip { path: PathBuf, source: io::Error },
    #[error(
        "{}: line {line} is not 64 pixels of 0 to 16 and a label of 0 to 9, separated by commas: \
         {problem}", .path.display()
    )]
    Line { path: PathBuf, line: usize, problem: String },
    #[error(
        "{}: {found} images, but training and testing need more than {needed}", .path.display()
    )]
    TooFew { path: PathBuf, found: usize, needed: usize },
    #[error("{}: not a safetensors file, or truncated: {source}", .path.display())]
    Malformed { path: PathBuf, source: SafeTensorError },
    #[error("{}: tensor {tensor}: {source}", .path.display())]
    Tensor { path: PathBuf, tensor: String, source: SafeTensorError },
    #[error("{}: tensor {tensor} {problem}", .path.display())]
    Shape { path: PathBuf, tensor: String, problem: String },
}

/// Images of one size, and what they show.
#[derive(Default)]
pub struct Digits {
    /// `[rows, PIXELS]`, from 0 to 1.
    pub images: Vec<f32>,
    /// `[rows]`.
    pub labels: Vec<u8>,
}

/// Reads the images, rotates each by 90° counter-clockwise, and parts them into training and test.
pub fn read_digits(path: &Path) -> Result<(Digits, Digits), DataError> {
    let at = || path.to_owned();
    let file = File::open(path).map_err(|source| DataError::Read { path: at(), source })?;
    let mut text = String::new();
    flate2::read::GzDecoder::new(file)
        .read_to_string(&mut text)
        .map_err(|source| DataError::Gzip { path: at(), source })?;
    let rows = text
        .lines()
        .enumerate()
        .map(|(index, line)| {
            parse(line).map_err(|problem| DataError::Line { path: at(), line: index + 1, problem })
        })
        .collect::<Result<Vec<_>, _>>()?;
    if rows.len() <= TEST_ROWS {
        return Err(DataError::TooFew { path: at(), found: rows.len(), needed: TEST_ROWS });
    }
    let test = rows.len() - TEST_ROWS;
    let mut parts = [Digits::default(), Digits::default()];
    for (index, (image, label)) in rows.iter().enumerate() {
        let part = &mut parts[usize::from(index >= test)];
        part.images.extend(rotated(image));
        part.labels.push(*label);
    }
    let [train, test] = parts;
    Ok((train, test))
}

fn parse(line: &str) -> Result<([u8; PIXELS], u8), String> {
    let fields = line
        .split(',')
        .map(|field| field.parse::<u8>().map_err(|error| format!("`{field}`: {error}")))
        .collect::<Result<Vec<_>, _>>()?;
    let Ok([pixels @ .., label]) = <[u8; PIXELS + 1]>::try_from(fields.as_slice()) else {
        return Err(format!("{} numbers", fields.len()));
    };
    match pixels.iter().find(|&&pixel| f32::from(pixel) > PIXEL_MAX) {
        Some(pixel) => Err(format!("a pixel of {pixel}")),
        None if usize::from(label) >= CLASSES => Err(format!("a label of {label}")),
        None => Ok((pixels, label)),
    }
}

/// The image turned by 90° counter-clockwise: its right edge becomes the top.
fn rotated(image: &[u8; PIXELS]) -> [f32; PIXELS] {
    std::array::from_fn(|index| {
        let (row, col) = (index / EDGE, index % EDGE);
        f32::from(image[col * EDGE + EDGE - 1 - row]) / PIXEL_MAX
    })
}

/// One linear layer of the pre-trained network.
pub struct Linear {
    /// I.
    pub in_features: usize,
    /// O.
    pub out_features: usize,
    /// W `[O, I]`.
    pub weight: Vec<f32>,
    /// b `[O]`.
    pub bias: Vec<f32>,
}

/// Reads the network, and checks that its layers fit the images, the classes and each other.
pub fn read_network(path: &Path) -> Result<Vec<Linear>, DataError> {
    let bytes =
        std::fs::read(path).map_err(|source| DataError::Read { path: path.to_owned(), source })?;
    let tensors = SafeTensors::deserialize(&bytes)
        .map_err(|source| DataError::Malformed { path: path.to_owned(), source })?;
    let read = |tensor: String, dimensions: usize| {
        let view = tensors.tensor(&tensor).map_err(|source| {
            let (path, tensor) = (path.to_owned(), tensor.clone());
            DataError::Tensor { path, tensor, source }
        })?;
        let problem = match decode(&view) {
            Some(values) if view.shape().len() == dimensions => {
                let values: Vec<f32> = values.into_iter().map(|value| value as f32).collect();
                return Ok((view.shape().to_vec(), values));
            }
            Some(_) => format!("has shape {:?}: it must have {dimensions}", view.shape()),
            None => format!("is stored as {:?}: it must be floating point", view.dtype()),
        };
        Err(DataError::Shape { path: path.to_owned(), tensor, problem })
    };
    let mut layers = Vec::new();
    let mut features = PIXELS;
    for index in 0..LAYERS {
        let (tensor, bias_tensor) =
            (format!("layers.{index}.weight"), format!("layers.{index}.bias"));
        let (shape, weight) = read(tensor.clone(), 2)?;
        let (bias_shape, bias) = read(bias_tensor.clone(), 1)?;
        let (out_features, in_features) = (shape[0], shape[1]);
        let mismatch =
            |tensor, problem| DataError::Shape { path: path.to_owned(), tensor, problem };
        if in_features != features {
            let problem = format!("has shape {shape:?}, but gets {features} features");
            return Err(mismatch(tensor, problem));
        }
        if index + 1 == LAYERS && out_features != CLASSES {
            let problem = format!("has shape {shape:?}, but there are {CLASSES} classes");
            return Err(mismatch(tensor, problem));
        }
        if bias_shape != [out_features] {
            let problem = format!("has shape {bias_shape:?}, but its weight has {shape:?}");
            return Err(mismatch(bias_tensor, problem));
        }
        features = out_features;
        layers.push(Linear { in_features, out_features, weight, bias });
    }
    Ok(layers)
}
