// The page's own program: draws the asset that the page carries, as our renderers do, and turns it under the hand.
//
// Gaussians are sorted from back to front and blended as rectangles; the projection, the low-pass, the least and the
// highest alpha are those of renderers/splats_torch.py. A mesh is drawn in the light of the run's renderer, with the
// formulas of renderers/shading.py, and without one in its plain colours. The world is z-up with the front to +x.
"use strict";

const HEAD = `#version 300 es
precision highp float;
precision highp int;
precision highp sampler2D;
`;
const PROJECTION = `
uniform mat3 turn;   // from the file's frame to the camera's: right, down, forward
uniform vec3 shift;
uniform vec2 size;   // of the picture in pixels
uniform float focal; // in pixels
uniform float near;
`;

const SPLAT_VERTEX = `${HEAD}${PROJECTION}
uniform sampler2D splats; // four texels a splat: mean, then the three axes, one deviation long; the fourth: r, g, b, a
uniform int width;
in vec2 corner;
in uint index;
out vec2 offset;
flat out vec3 shape; // shear, variance along y, precision across
flat out vec4 colour;
void main() {
  int first = 4 * int(index);
  ivec2 at = ivec2(first % width, first / width);
  vec4 texel[4];
  for (int k = 0; k < 4; k++) texel[k] = texelFetch(splats, at + ivec2(k, 0), 0);
  colour = vec4(texel[0].w, texel[1].w, texel[2].w, texel[3].w);
  vec3 local = turn * texel[0].xyz + shift;
  float reach = 2.0 * log(255.0 * colour.a);
  gl_Position = vec4(2.0, 2.0, 2.0, 1.0); // outside
  if (local.z <= near || reach <= 0.0) return;
  vec2 ray = local.xy / local.z, limit = 1.3 * size / (2.0 * focal), bound = clamp(ray, -limit, limit);
  vec3 variance = vec3(0.3, 0.0, 0.3); // xx, xy, yy
  for (int k = 1; k < 4; k++) {
    vec3 axis = turn * texel[k].xyz;
    vec2 flat_axis = focal / local.z * (axis.xy - bound * axis.z);
    variance += vec3(flat_axis.x * flat_axis.x, flat_axis.x * flat_axis.y, flat_axis.y * flat_axis.y);
  }
  float shear = variance.y / variance.z;
  shape = vec3(shear, variance.z, 1.0 / (variance.x - shear * variance.y));
  offset = corner * sqrt(reach * variance.xz);
  vec2 place = 2.0 * (focal * ray + offset) / size;
  gl_Position = vec4(place.x, -place.y, 0.0, 1.0);
}`;

const SPLAT_FRAGMENT = `${HEAD}
in vec2 offset;
flat in vec3 shape;
flat in vec4 colour;
out vec4 shown;
void main() {
  float across = offset.x - shape.x * offset.y;
  float alpha = colour.a * exp(-0.5 * (offset.y * offset.y / shape.y + shape.z * across * across));
  if (alpha < 1.0 / 255.0) discard;
  shown = vec4(colour.rgb, 1.0) * min(alpha, 0.999);
}`;

const MESH_VERTEX = `${HEAD}${PROJECTION}
uniform mat3 world; // from the file's frame to the world's
uniform float far;
in vec3 POSITION, NORMAL, COLOR_0;
in vec2 TEXCOORD_0;
in vec4 TANGENT;
centroid out vec3 place, normal, colour;
centroid out vec2 uv;
centroid out vec4 tangent;
void main() {
  vec3 local = turn * POSITION + shift;
  vec2 flat_place = 2.0 * focal * local.xy / size;
  float depth = ((far + near) * local.z - 2.0 * far * near) / (far - near);
  gl_Position = vec4(flat_place.x, -flat_place.y, depth, local.z);
  place = world * POSITION;
  normal = world * NORMAL;
  tangent = vec4(world * TANGENT.xyz, TANGENT.w);
  uv = TEXCOORD_0;
  colour = mix(12.92 * COLOR_0, 1.055 * pow(COLOR_0, vec3(1.0 / 2.4)) - 0.055, step(0.0031308, COLOR_0));
}`;

const MESH_FRAGMENT = `${HEAD}
uniform sampler2D base, rough, bumps;
uniform vec2 factors;   // of roughness and of metal
uniform vec3 eye, towards;
uniform float ambient, strength;
uniform int light;      // 0 none, 1 lambert, 2 pbr
centroid in vec3 place, normal, colour;
centroid in vec2 uv;
centroid in vec4 tangent;
out vec4 shown;
const float PI = 3.141592653589793;
vec3 to_srgb(vec3 x) { return mix(12.92 * x, 1.055 * pow(x, vec3(1.0 / 2.4)) - 0.055, step(0.0031308, x)); }
vec3 to_linear(vec3 x) { return mix(x / 12.92, pow((x + 0.055) / 1.055, vec3(2.4)), step(0.04045, x)); }
vec3 lit(vec3 surface, vec3 n, vec3 e, float roughness, float metal) {
  vec3 h = normalize(towards + e), albedo = to_linear(surface);
  float nl = max(dot(n, towards), 1e-4), ne = max(dot(n, e), 1e-4);
  float nh = clamp(dot(n, h), 0.0, 1.0), he = clamp(dot(h, e), 0.0, 1.0);
  roughness = max(roughness, 0.045);
  vec3 f0 = mix(vec3(0.04), albedo, metal);
  float a = roughness * roughness * roughness * roughness, d = nh * nh * (a - 1.0) + 1.0;
  float spots = a / (PI * d * d);
  float shadowed = 0.5 / (nl * sqrt(ne * ne * (1.0 - a) + a) + ne * sqrt(nl * nl * (1.0 - a) + a));
  vec3 fresnel = f0 + (1.0 - f0) * pow(1.0 - he, 5.0);
  float x = 1.0 - roughness, grazing = min(x * x, exp2(-9.28 * ne)) * x + 0.0425 - 0.0275 * roughness;
  float scale = 1.04 - 0.572 * roughness - 1.04 * grazing, bias = 0.022 * roughness - 0.04 + 1.04 * grazing;
  vec3 shine = clamp(f0 * scale + bias, 0.0, 1.0), chalk = (1.0 - shine) * (1.0 - metal) * albedo;
  vec3 direct = chalk + PI * spots * shadowed * fresnel;
  float cosine = max(dot(n, towards), 0.0);
  return to_srgb(clamp(strength * cosine * direct + ambient * (chalk + shine), 0.0, 1.0));
}
void main() {
  vec3 surface = colour * texture(base, uv).rgb, n = normalize(normal);
  if (tangent.w != 0.0) {
    vec3 t = normalize(tangent.xyz - dot(tangent.xyz, n) * n), b = cross(n, t) * sign(tangent.w);
    n = normalize(mat3(t, b, n) * (2.0 * texture(bumps, uv).xyz - 1.0));
  }
  if (!gl_FrontFacing) n = -n;
  vec2 material = factors * texture(rough, uv).gb;
  if (light == 1) surface *= ambient + strength * max(dot(n, towards), 0.0);
  if (light == 2) surface = lit(surface, n, normalize(eye - place), material.x, material.y);
  shown = vec4(surface, 1.0);
}`;

const scene = JSON.parse(document.getElementById("scene").textContent);
const canvas = document.querySelector("canvas");
const view = { azimuth: 0, elevation: 0, distance: 0 }; // radians, and the world's unit
let gl, asset, waiting = false;

function program(vertex, fragment) {
  const made = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(made, shader);
    if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
  }
  gl.linkProgram(made);
  if (!gl.getProgramParameter(made, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(made));
  gl.useProgram(made);
  return { made, at: (name) => gl.getUniformLocation(made, name) };
}

function attribute(made, name, data, width) {
  const place = gl.getAttribLocation(made, name);
  gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
  gl.bufferData(gl.ARRAY_BUFFER, data, gl.STATIC_DRAW);
  gl.enableVertexAttribArray(place);
  gl.vertexAttribPointer(place, width, gl.FLOAT, false, 0, 0);
}

// Rows of 32 bytes as in export/splat.py; the frame is y-down with the front to +z.
function splats(bytes) {
  const count = bytes.length / 32, numbers = new Float32Array(bytes.buffer);
  const rows = Math.ceil(count / 512), width = 2048, texels = new Float32Array(4 * width * rows);
  for (let i = 0; i < count; i++) {
    const [, , , sx, sy, sz] = numbers.subarray(8 * i, 8 * i + 6), byte = bytes.subarray(32 * i + 24, 32 * i + 32);
    const quat = [4, 5, 6, 7].map((k) => byte[k] - 128), length = Math.hypot(...quat);
    const [w, x, y, z] = quat.map((part) => part / length);
    const axes = [
      [1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)].map((part) => sx * part),
      [2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x)].map((part) => sy * part),
      [2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)].map((part) => sz * part),
    ];
    [numbers.subarray(8 * i, 8 * i + 3), ...axes].forEach((part, k) => {
      texels.set(part, 16 * i + 4 * k);
      texels[16 * i + 4 * k + 3] = byte[k] / 255;
    });
  }
  const { made, at } = program(SPLAT_VERTEX, SPLAT_FRAGMENT);
  gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
  for (const how of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, how, gl.NEAREST);
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA32F, width, rows, 0, gl.RGBA, gl.FLOAT, texels);
  gl.uniform1i(at("width"), width);
  attribute(made, "corner", new Float32Array([-1, -1, 1, -1, -1, 1, 1, 1]), 2);
  const index = gl.getAttribLocation(made, "index");
  gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
  gl.enableVertexAttribArray(index);
  gl.vertexAttribIPointer(index, 1, gl.UNSIGNED_INT, 0, 0);
  gl.vertexAttribDivisor(index, 1);
  gl.enable(gl.BLEND);
  gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
  const draw = ({ turn }) => {
    gl.bufferData(gl.ARRAY_BUFFER, farthestFirst(numbers, count, [turn[2], turn[5], turn[8]]), gl.DYNAMIC_DRAW);
    gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, count);
  };
  return { at, draw, axes: [[0, -1, 0], [0, 0, -1], [1, 0, 0]] };
}

// The order of splats along a direction, in 65,536 steps of depth.
function farthestFirst(numbers, count, [x, y, z]) {
  const depth = new Float32Array(count), start = new Uint32Array(65537), order = new Uint32Array(count);
  let low = Infinity, high = -Infinity;
  for (let i = 0; i < count; i++) {
    depth[i] = x * numbers[8 * i] + y * numbers[8 * i + 1] + z * numbers[8 * i + 2];
    low = Math.min(low, depth[i]);
    high = Math.max(high, depth[i]);
  }
  const scale = 65535 / (high - low || 1), step = (i) => Math.round((high - depth[i]) * scale);
  for (let i = 0; i < count; i++) start[step(i) + 1]++;
  for (let k = 0; k < 65536; k++) start[k + 1] += start[k];
  for (let i = count - 1; i >= 0; i--) order[start[step(i)]++] = i; // of two at one depth the first is in front
  return order;
}

// Binary glTF as export/glb.py writes it: one primitive; the frame is y-up with the front to +z.
async function mesh(bytes) {
  const length = new DataView(bytes.buffer).getUint32(12, true);
  const gltf = JSON.parse(new TextDecoder().decode(bytes.subarray(20, 20 + length)));
  const part = (k) => {
    const { byteOffset, byteLength } = gltf.bufferViews[k], start = 28 + length + byteOffset;
    return bytes.subarray(start, start + byteLength);
  };
  const kinds = { 5123: Uint16Array, 5125: Uint32Array, 5126: Float32Array };
  const table = (k) => {
    const { bufferView, componentType } = gltf.accessors[k], data = part(bufferView), Kind = kinds[componentType];
    return new Kind(data.buffer, data.byteOffset, data.byteLength / Kind.BYTES_PER_ELEMENT);
  };
  const { made, at } = program(MESH_VERTEX, MESH_FRAGMENT);
  const { attributes, indices } = gltf.meshes[0].primitives[0];
  const { normalTexture, pbrMetallicRoughness } = gltf.materials[0];
  gl.vertexAttrib3f(gl.getAttribLocation(made, "COLOR_0"), 1, 1, 1);
  gl.vertexAttrib4f(gl.getAttribLocation(made, "TANGENT"), 0, 0, 0, 0);
  const widths = { VEC2: 2, VEC3: 3, VEC4: 4 };
  for (const [name, k] of Object.entries(attributes)) attribute(made, name, table(k), widths[gltf.accessors[k].type]);
  const { baseColorTexture, metallicRoughnessTexture, roughnessFactor = 1, metallicFactor = 1 } = pbrMetallicRoughness;
  const pictures = { base: baseColorTexture, rough: metallicRoughnessTexture, bumps: normalTexture };
  for (const [unit, [name, use]] of Object.entries(pictures).entries()) {
    const image = use && gltf.images[gltf.textures[use.index].source];
    const how = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
    const picture = image && await createImageBitmap(new Blob([part(image.bufferView)], { type: image.mimeType }), how);
    texture(unit, picture || new ImageData(new Uint8ClampedArray([255, 255, 255, 255]), 1, 1));
    gl.uniform1i(at(name), unit);
  }
  gl.uniform2f(at("factors"), roughnessFactor, metallicFactor);
  const corners = table(indices), axes = [[0, 1, 0], [0, 0, 1], [1, 0, 0]];
  gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, gl.createBuffer());
  gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, corners, gl.STATIC_DRAW);
  gl.enable(gl.DEPTH_TEST);
  gl.uniformMatrix3fv(at("world"), false, axes.flat());
  shine(at);
  const kind = corners.BYTES_PER_ELEMENT === 2 ? gl.UNSIGNED_SHORT : gl.UNSIGNED_INT;
  const draw = ({ eye, far }) => {
    gl.uniform3fv(at("eye"), eye);
    gl.uniform1f(at("far"), far);
    gl.drawElements(gl.TRIANGLES, corners.length, kind, 0);
  };
  return { at, draw, axes };
}

function texture(unit, picture) {
  gl.activeTexture(gl.TEXTURE0 + unit);
  gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
  gl.pixelStorei(gl.UNPACK_COLORSPACE_CONVERSION_WEBGL, gl.NONE);
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA8, gl.RGBA, gl.UNSIGNED_BYTE, picture);
  gl.generateMipmap(gl.TEXTURE_2D);
  for (const axis of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T]) gl.texParameteri(gl.TEXTURE_2D, axis, gl.CLAMP_TO_EDGE);
}

function shine(at) {
  if (!scene.light) return;
  const { kind, direction, ambient, diffuse, sun } = scene.light, length = Math.hypot(...direction);
  gl.uniform1i(at("light"), { lambert: 1, pbr: 2 }[kind]);
  gl.uniform3fv(at("towards"), direction.map((part) => part / length));
  gl.uniform1f(at("ambient"), ambient);
  gl.uniform1f(at("strength"), kind === "pbr" ? sun : diffuse);
}

const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];

// A change of the canvas' size wipes it, so it is made here, right before the picture.
function fit() {
  const ratio = Math.min(devicePixelRatio, 2);
  const sides = [canvas.clientWidth, canvas.clientHeight];
  const [width, height] = sides.map((side) => Math.max(Math.round(ratio * side), 1));
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  return { width, height };
}

function draw() {
  waiting = false;
  const { width, height } = fit(), { at, axes } = asset, [a, e] = [view.azimuth, view.elevation];
  const forward = [-Math.cos(e) * Math.cos(a), -Math.cos(e) * Math.sin(a), -Math.sin(e)];
  const right = [-Math.sin(a), Math.cos(a), 0];
  const down = [Math.sin(e) * Math.cos(a), Math.sin(e) * Math.sin(a), -Math.cos(e)];
  const eye = scene.target.map((part, k) => part - view.distance * forward[k]), rows = [right, down, forward];
  const turn = axes.flatMap((axis) => rows.map((row) => dot(row, axis)));
  gl.viewport(0, 0, width, height);
  gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
  gl.uniformMatrix3fv(at("turn"), false, turn);
  gl.uniform3fv(at("shift"), rows.map((row) => -dot(row, eye)));
  gl.uniform2f(at("size"), width, height);
  gl.uniform1f(at("focal"), Math.min(width, height) / (2 * Math.tan((scene.fov_deg * Math.PI) / 360)));
  gl.uniform1f(at("near"), 0.01 * scene.reach);
  asset.draw({ turn, eye, far: view.distance + 1.01 * scene.reach });
}

function redraw() {
  if (!waiting) requestAnimationFrame(draw);
  waiting = true;
}

function reset() {
  view.azimuth = (scene.azimuth_deg * Math.PI) / 180;
  view.elevation = (scene.elevation_deg * Math.PI) / 180;
  view.distance = scene.distance;
  redraw();
}

function move(right, down, nearer = 1) {
  const steepest = (89 * Math.PI) / 180;
  view.azimuth -= right;
  view.elevation = Math.min(Math.max(view.elevation + down, -steepest), steepest);
  view.distance = Math.min(Math.max(view.distance / nearer, 0.5 * scene.reach), 5 * scene.distance);
  redraw();
}

function listen() {
  const fingers = new Map(), apart = () => {
    const [[ax, ay], [bx, by]] = fingers.values();
    return Math.max(Math.hypot(ax - bx, ay - by), 1);
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, [event.clientX, event.clientY]);
  });
  canvas.addEventListener("pointermove", (event) => {
    const before = fingers.get(event.pointerId);
    if (!before) return;
    const gap = fingers.size === 2 ? apart() : 0, angle = Math.PI / Math.min(canvas.clientWidth, canvas.clientHeight);
    fingers.set(event.pointerId, [event.clientX, event.clientY]);
    if (fingers.size === 1) move(angle * (event.clientX - before[0]), angle * (event.clientY - before[1]));
    if (fingers.size === 2) move(0, 0, apart() / gap);
  });
  for (const end of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(end, (event) => fingers.delete(event.pointerId));
  }
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    move(0, 0, Math.exp(-0.002 * event.deltaY * (event.deltaMode ? 16 : 1)));
  }, { passive: false });
  canvas.addEventListener("dblclick", reset);
  const step = Math.PI / 12, keys = {
    ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step],
    "+": [0, 0, 1.1], "-": [0, 0, 1 / 1.1],
  };
  canvas.addEventListener("keydown", (event) => {
    if (event.key === "Home") reset();
    else if (keys[event.key]) move(...keys[event.key]);
    else return;
    event.preventDefault();
  });
  canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
  canvas.addEventListener("webglcontextrestored", () => location.reload());
  new ResizeObserver(draw).observe(canvas); // at once, so that no frame shows the old picture stretched
}

async function open() {
  const data = document.getElementById("asset");
  const bytes = Uint8Array.from(atob(data.textContent), (c) => c.charCodeAt(0));
  const isMesh = data.dataset.format === "glb";
  gl = canvas.getContext("webgl2", { antialias: isMesh });
  if (!gl) throw new Error("this browser offers no WebGL 2");
  gl.clearColor(1, 1, 1, 1);
  asset = isMesh ? await mesh(bytes) : splats(bytes);
  reset();
  listen();
}

open().catch((error) => {
  const sorry = document.createElement("p");
  sorry.textContent = `The asset cannot be shown: ${error.message}.`;
  canvas.replaceWith(sorry);
});
