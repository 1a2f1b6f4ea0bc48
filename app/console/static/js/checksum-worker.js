// CRC-32 of files, beside the page: gigabytes of clips must not hold up a click.
// Eight tables, eight bytes a turn (Kounavis and Berry, "slicing by 8").

const POLYNOMIAL = 0xedb88320;
const CHUNK = 4 << 20;

const tables = Array.from({ length: 8 }, () => new Uint32Array(256));
for (let n = 0; n < 256; n += 1) {
  let value = n;
  for (let bit = 0; bit < 8; bit += 1) value = value & 1 ? (value >>> 1) ^ POLYNOMIAL : value >>> 1;
  tables[0][n] = value;
}
for (let n = 0; n < 256; n += 1) {
  for (let at = 1; at < 8; at += 1) {
    const before = tables[at - 1][n];
    tables[at][n] = (before >>> 8) ^ tables[0][before & 0xff];
  }
}

function update(crc, data) {
  const [t0, t1, t2, t3, t4, t5, t6, t7] = tables;
  let at = 0;
  for (; at + 8 <= data.length; at += 8) {
    crc ^= data[at] | (data[at + 1] << 8) | (data[at + 2] << 16) | (data[at + 3] << 24);
    crc =
      t7[crc & 0xff] ^ t6[(crc >>> 8) & 0xff] ^ t5[(crc >>> 16) & 0xff] ^ t4[crc >>> 24] ^
      t3[data[at + 4]] ^ t2[data[at + 5]] ^ t1[data[at + 6]] ^ t0[data[at + 7]];
  }
  for (; at < data.length; at += 1) crc = t0[(crc ^ data[at]) & 0xff] ^ (crc >>> 8);
  return crc;
}

onmessage = async ({ data: { id, file } }) => {
  try {
    let crc = -1;
    for (let start = 0; start < file.size; start += CHUNK) {
      crc = update(crc, new Uint8Array(await file.slice(start, start + CHUNK).arrayBuffer()));
      postMessage({ id, bytes: Math.min(start + CHUNK, file.size) });
    }
    postMessage({ id, crc: ~crc >>> 0 });
  } catch (error) {
    postMessage({ id, error: `${file.name} can't be read: ${error.message}` });
  }
};
