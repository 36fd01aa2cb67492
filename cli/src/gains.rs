//! The file of gains: `merge` writes it and `unmerge` reads it.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use fused_dora::peft::safetensors::Dtype as Stored;
use fused_dora::peft::safetensors::tensor::{TensorView, serialize};
use fused_dora::peft::{CheckpointError, TensorFile};
use indicatif::ProgressBar;

use crate::engine::Merged;
use crate::error::Failure;
use crate::fit::Layer;
use crate::output::Output;

/// The gains that a merge wrote, for all layers that have some.
pub fn read(
    path: Option<&Path>,
    layers: &BTreeMap<String, Layer>,
) -> Result<HashMap<String, Vec<f32>>, Failure> {
    let mut gains = HashMap::new();
    let mut file = None;
    for (tensor, Layer { layer, .. }) in layers {
        let features = layer.magnitude().len();
        if features == 0 {
            continue;
        }
        let Some(path) = path else {
            return Err(Failure::Call(format!(
                "unmerge needs --gains, the file that merge wrote: {tensor} has a magnitude, and \
                 the norms that it was merged with cannot be computed from merged weights"
            )));
        };
        let file = match &mut file {
            Some(file) => file,
            None => file.insert(TensorFile::open(path)?),
        };
        let gain = file.floats(tensor)?;
        if gain.len() != features {
            return Err(CheckpointError::Shape {
                path: path.to_owned(),
                tensor: tensor.clone(),
                found: vec![gain.len()],
                needed: format!("the adapter has {features} magnitudes: are they of this merge?"),
            }
            .into());
        }
        gains.insert(tensor.clone(), gain);
    }
    Ok(gains)
}

pub fn write(
    path: &Path,
    output: Output,
    merged: &BTreeMap<String, Merged>,
) -> Result<(), Failure> {
    let gains = merged.iter().filter(|(_, merged)| !merged.gain.is_empty());
    let gains: Vec<(&String, usize, Vec<u8>)> = gains
        .map(|(tensor, Merged { gain, .. })| {
            (tensor, gain.len(), gain.iter().flat_map(|gain| gain.to_le_bytes()).collect())
        })
        .collect();
    let malformed = |error| CheckpointError::Malformed {
        path: path.to_owned(),
        problem: format!("cannot hold the gains: {error}"),
    };
    let view = |(tensor, len, bytes)| Ok((tensor, TensorView::new(Stored::F32, vec![len], bytes)?));
    let views = gains.iter().map(|(tensor, len, bytes)| view((tensor, *len, bytes)));
    let views = views.collect::<Result<Vec<_>, _>>().map_err(malformed)?;
    let bytes = serialize(views, None).map_err(malformed)?;
    let hidden = ProgressBar::hidden();
    let mut sink = output.sink(path, &hidden)?;
    sink.write(&bytes)?;
    sink.finish()?;
    output.finish()
}
